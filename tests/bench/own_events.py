"""Whether a trader's stream told each of their events, once: judged by the numbers it gives."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class OwnEvents:
    """The numbers of one trader's events, over all connections."""

    epoch: str = ""  # whose numbering it is; "" before the first
    last: int = 0
    told: int = 0
    doubled: int = 0
    disordered: int = 0  # came after a later one
    resets: int = 0
    #: Not told so far; what was not told before a reset the client has loaded anew.
    missing: set[int] = field(default_factory=set)
    lost: int = 0  # were still missing when a reset came
    foreign: bool = False  # another numbering than ours is spoken, until a reset says which

    def begin(self, epoch: str, seq: int) -> None:
        """A sign-in; the first one says after which event all are told."""
        if not self.epoch:
            self.epoch, self.last = epoch, seq
        self.foreign = epoch != self.epoch

    def event(self, seq: int) -> None:
        """An event came."""
        if self.foreign:
            return
        if seq > self.last:
            self.missing.update(range(self.last + 1, seq))
            self.last = seq
        elif seq in self.missing:
            self.missing.discard(seq)
            self.disordered += 1
        else:
            self.doubled += 1
            return
        self.told += 1

    def resumed(self, seq: int) -> None:
        """All that was missed has been told, up to `seq`."""
        if seq > self.last:
            self.missing.update(range(self.last + 1, seq + 1))
            self.last = seq
        # One that is behind what was told gave a number twice.
        self.doubled += max(self.last - seq, 0)

    def reset(self, epoch: str, seq: int) -> None:
        """The client loads everything anew; events after `seq` are told from here on."""
        self.resets += 1
        self.foreign = False
        self.lost += len(self.missing)
        self.missing.clear()
        self.epoch, self.last = epoch, seq

    @property
    def never_told(self) -> int:
        """Events that had a number and never came."""
        return self.lost + len(self.missing)

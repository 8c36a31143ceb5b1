"""A local machine that loads itself: the modules of a load go there, and run there as the app."""

import shlex
import subprocess
from pathlib import Path
from typing import IO

from e2e.site.machine import Machine

HERE = Path(__file__).parent
#: In memory, so that a reboot takes it away.
FOLDER = "/run/tap-bench"
#: More than a client and its connection for each wallet.
_OPEN_FILES = 20_000
#: After its time a load gets so many seconds to end by itself, then it is killed.
_KILLED_AFTER_S = 10


class LoadMachine(Machine):
    """The machine of this name in scripts/vm.sh, with a site that is deployed."""

    def bring(self, modules: tuple[str, ...]) -> None:
        """Copy these modules of this folder there."""
        self.run(f"install -d -o app -g app {FOLDER} {FOLDER}/bench")
        for name in ("__init__", *modules):
            source = (HERE / f"{name}.py").read_text()
            self.run(f"cat > {FOLDER}/bench/{name}.py", stdin=source)

    def begin(self, command: str, errors: IO[str]) -> subprocess.Popen[str]:
        """Run a shell command there that is talked with, over a login of its own: a connection
        that others share may be hung up.
        """
        return subprocess.Popen(
            ["ssh", "-F", self.ssh_config, self.name, f"sudo sh -c {shlex.quote(command)}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    @staticmethod
    def command(module: str, words: str, *, limit_s: float) -> str:
        """The shell command that runs a module there, for so long at most."""
        # Resolved now: a deploy moves the link, and what is imported later would be of another
        # release than what was imported before.
        python = "$(readlink -f /opt/app/current)/venv/bin/python"
        return (
            f"ulimit -n {_OPEN_FILES}; cd {FOLDER} &&"
            " exec setpriv --reuid app --regid app --groups app,redis"
            f" timeout --kill-after {_KILLED_AFTER_S} {limit_s:g} {python} -m {module} {words}"
        )

"""Bets inside the provisioned machine: through Nginx, under the unit's real quota.

    PYTHONPATH=tests python -m bench.vm_bets [--machine tap-vm] [--shape steady|spike]
        [--rate 3000] [--seconds 60] [--wallets 2500]

The load runs on the machine itself, on loopback, within every production limit, and the
books are audited afterwards. `spike` goes from 500 bets/s to the rate within 3 s, stays
for 5 s and returns.
"""

import argparse
import json

from bench.machine import LoadMachine

MODULES = ("bettors", "load", "on_machine", "site")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.vm_bets")
    parser.add_argument("--machine", default="tap-vm")
    parser.add_argument("--shape", choices=("steady", "spike"), default="steady")
    parser.add_argument("--rate", type=int, default=3000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--wallets", type=int, default=2500)
    args = parser.parse_args()
    machine = LoadMachine(args.machine)
    machine.bring(MODULES)
    words = f"{args.shape} {args.rate} {args.seconds} {args.wallets}"
    command = machine.command("bench.on_machine", words, limit_s=args.seconds + 120)
    printed = machine.run(command, timeout=args.seconds + 180)
    print(json.dumps(json.loads(printed.splitlines()[-1]), indent=1))
    print(machine.run("tap audit").strip())


if __name__ == "__main__":
    main()

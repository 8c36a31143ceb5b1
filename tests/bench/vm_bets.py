"""Bets inside the provisioned machine: through Nginx, under the unit's real quota.

    PYTHONPATH=tests python -m bench.vm_bets [--machine tap-vm] [--shape steady|spike]
        [--rate 3000] [--seconds 60] [--wallets 2500]

The load runs on the machine itself, on loopback, within every production limit, and the
books are audited afterwards. `spike` goes from 500 bets/s to the rate within 3 s, stays
for 5 s and returns.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
VM = HERE.parent.parent / "scripts" / "vm.sh"
FOLDER = "/run/tap-bench"
PYTHON = "/opt/app/current/venv/bin/python"


def on_machine(machine: str, command: str, stdin: bytes = b"") -> str:
    """Run a command there as root. Ends this program when it fails."""
    done = subprocess.run(
        [VM, "ssh", machine, "sudo", "sh", "-c", f"'{command}'"],
        input=stdin,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"vm_bets: {done.stderr.decode()[-2000:]}{done.stdout.decode()[-2000:]}")
    return done.stdout.decode()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.vm_bets")
    parser.add_argument("--machine", default="tap-vm")
    parser.add_argument("--shape", choices=("steady", "spike"), default="steady")
    parser.add_argument("--rate", type=int, default=3000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--wallets", type=int, default=2500)
    args = parser.parse_args()
    on_machine(args.machine, f"install -d -o app -g app {FOLDER}")
    for name in ("load.py", "on_machine.py"):
        on_machine(args.machine, f"cat > {FOLDER}/{name}", (HERE / name).read_bytes())
    words = f"{args.shape} {args.rate} {args.seconds} {args.wallets}"
    printed = on_machine(
        args.machine,
        f"ulimit -n 20000; cd {FOLDER} && setpriv --reuid app --regid app --groups app,redis"
        f" timeout {args.seconds + 120} {PYTHON} on_machine.py {words}",
    )
    print(json.dumps(json.loads(printed.splitlines()[-1]), indent=1))
    print(on_machine(args.machine, "tap audit").strip())


if __name__ == "__main__":
    main()

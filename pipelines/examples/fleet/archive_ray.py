#!/usr/bin/env python3
"""An archive over the machines of a Ray cluster (or the processors of this one): a task for each file, each `ssm run`.

    pip install ray
    archive_ray.py FOUND FILE…                # on this machine
    archive_ray.py --address auto FOUND FILE… # on the cluster that this machine is part of

Files and FOUND are on storage that all machines see under one name. A task that is lost with its machine is started again
elsewhere and goes on from the state that it left in FOUND; files that do not decode are named at the end.
"""
import argparse
import shutil
import subprocess
import sys

import ray


@ray.remote(max_retries=3)
def look(command, film):
    done = subprocess.run([*command, film], capture_output=True, text=True)
    return film, done.returncode, done.stdout + done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="of the cluster; without: this machine")
    parser.add_argument("--element", default="ssmevents frame-scores=false")
    parser.add_argument("--cpus", type=int, default=1, help="processors of a task")
    parser.add_argument("--ssm", default=shutil.which("ssm"), help="the command")
    parser.add_argument("found")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    if not args.ssm:
        parser.error("ssm is not on the PATH: --ssm")
    ray.init(address=args.address, log_to_driver=False)
    command = [args.ssm, "run", "--output", args.found, "--element", args.element]
    waiting = [look.options(num_cpus=args.cpus).remote(command, film) for film in args.files]
    failed = []
    while waiting:
        (done,), waiting = ray.wait(waiting)
        film, code, told = ray.get(done)
        print(f"{len(args.files) - len(waiting)}/{len(args.files)} {film}: {'done' if code == 0 else 'FAILED'}", flush=True)
        if code != 0:
            failed.append((film, told.strip()))
    for film, told in failed:
        print(f"{film}:\n{told}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

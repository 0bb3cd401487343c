"""Gloo's collectives between two processes, as `cargo xtask bench collectives --python` runs them: medians as JSON lines.

Each process has one thread. A call's time is that of the slower process. Needs PyTorch with torch.distributed.
"""
import json
import multiprocessing
import os
import statistics
import sys
import time

BYTES = 64 << 20


def rank(number, rounds, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=2)
    whole = torch.ones(BYTES // 4)
    half = torch.empty(BYTES // 8)
    part = torch.ones(BYTES // 8)
    gathered = torch.empty(BYTES // 4)
    calls = {
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(half, whole),
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(gathered, part),
    }
    for name, call in calls.items():
        try:
            call()
        except (RuntimeError, ValueError) as refused:
            if number == 0:
                print(json.dumps({"call": name, "refused": str(refused).splitlines()[0]}), flush=True)
            continue
        times = []
        for _ in range(rounds):
            dist.barrier()
            began = time.perf_counter()
            call()
            took = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
            dist.all_reduce(took, op=dist.ReduceOp.MAX)
            times.append(took.item())
        if number == 0:
            print(json.dumps({"call": name, "median_ms": 1e3 * statistics.median(times)}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    rounds, port = int(sys.argv[1]), int(sys.argv[2])
    processes = [multiprocessing.Process(target=rank, args=(number, rounds, port)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(process.exitcode or 0 for process in processes))

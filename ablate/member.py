"""One of the processes that carry out a cell on several devices (`ablate.group`).

Lines from the worker are orders. Lines to it are JSON: {"at"} how far the work is, {"done"},
{"stopped"} with where, {"failed"} with what a failure records. Only the first member says how far
it is, and only the first writes results.
"""

import contextlib
import ctypes
import functools
import json
import os
import queue
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from ablate import interrupts
from ablate.failures import described
from ablate.group import HOST
from ablate.machine import fault
from ablate.results import heart
from ablate.results.log import LOG, logged
from ablate.results.store import Store

PR_SET_PDEATHSIG = 1
# A member that died is seen by the worker; one that waits for another may wait long, for writing.
TIMEOUT = timedelta(hours=6)


def main(
    incoming: int, outgoing: int, index: int, count: int, port: int, on_gpu: int, worker: int
) -> None:
    """Carry out the orders that arrive on one pipe, tell so on another, and end the process."""
    _end_with(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker hears it
    orders: queue.Queue[str] = queue.Queue()
    lines, answers = os.fdopen(incoming), os.fdopen(outgoing, "w", buffering=1)
    threading.Thread(target=_listen, args=(lines, orders), daemon=True).start()
    tell = functools.partial(_tell, answers)
    try:
        join(index, count, port, on_gpu=bool(on_gpu))
    except Exception as error:
        _fail(error, tell)
    if index == 0:
        heart.relay(lambda place, facts: tell(at=place, facts=facts))
    while True:
        _carry_out(json.loads(orders.get()), tell)


def join(index: int, count: int, port: int, *, on_gpu: bool) -> None:
    """Make this process one of `count` that compute together."""
    import torch
    from torch import distributed
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
    }  # as accelerate reads them
    if on_gpu:
        torch.cuda.set_device(index)
    store = TCPStore(HOST, port, is_master=False, timeout=TIMEOUT)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=index,
        world_size=count,
        timeout=TIMEOUT,
    )


def _carry_out(order: dict[str, Any], tell: Any) -> None:
    from ablate import tracking
    from ablate.config.build import build
    from ablate.run import carry_out
    from ablate.training.distributed import is_first

    try:
        draft = Path(order["draft"])
        tracking.ask(order["trackers"])
        log = draft / LOG if is_first() else Path(os.devnull)  # its last lines are kept in memory
        with interrupts.raised(), contextlib.chdir(order["here"]), logged(log):
            carry_out(
                [build(tree) for tree in order["cells"]],
                order["key"],
                Store(Path(order["out"])),
                draft,
                recorded=order["recorded"],
                trained=order["trained"],
            )
    except KeyboardInterrupt as stop:
        tell(stopped=getattr(stop, "line", "stopped; the same command starts it again"))
        _leave(128 + int(getattr(stop, "number", signal.SIGTERM)))
    except BaseException as error:
        _fail(error, tell)
    tell(done=True)


def _fail(error: BaseException, tell: Any) -> None:
    lost = "closed by peer" in str(error) or "Connection" in str(error)  # another has ended
    tell(failed=described(error), fault=fault(error), lost=lost, when=time.monotonic())
    _leave(1)


def _leave(status: int) -> None:
    """End at once: taking the group of processes apart would wait for the others."""
    sys.stderr.flush()
    os._exit(status)


def _listen(lines: TextIO, orders: "queue.Queue[str]") -> None:
    for line in lines:
        orders.put(line)
    os._exit(0)  # the worker has ended, or needs this process no more


def _end_with(worker: int) -> None:
    """Let the system kill this process when the worker ends, also where it holds Python's lock."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:  # it has ended already
        os._exit(0)


def _tell(answers: TextIO, **what: object) -> None:
    with contextlib.suppress(OSError, ValueError):  # the worker has ended
        answers.write(json.dumps(what) + "\n")

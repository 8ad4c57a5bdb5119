"""What lm-eval found item by item, noted while it evaluates.

lm-eval's own log of samples writes every document as JSON and hashes it anew for every model, which
takes longer than the metrics themselves. Here the results are noted as the task computes them, and
what a record keeps of the documents is made once per process.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from ablate.evaluate.answers import prompt_hash


class Noted:
    """The items of a task, and what it made of the last answers to them."""

    def __init__(self, task: Any, items: Sequence[tuple[int, Any]]) -> None:
        """Take a task with its requests built, and its items in the order of evaluation."""
        asked: dict[int, list[Any]] = defaultdict(list)
        for instance in task.instances:
            asked[instance.doc_id].append(instance)
        self._items = [
            (number, doc, sorted(asked[number], key=lambda one: one.idx)) for number, doc in items
        ]
        self._hashes = [prompt_hash(requests[0].arguments[0]) for _, _, requests in self._items]
        self._task, self._judge = task, task.process_results
        self._results: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget what was found."""
        self._results = []

    def judge(self, doc: Any, answers: Any) -> dict[str, Any]:
        """Return the task's metrics of the answers to an item, and note them."""
        found: dict[str, Any] = self._judge(doc, answers)
        self._results.append(found)
        return found

    def samples(self) -> Iterator[dict[str, Any]]:
        """Yield of every item under every filter what lm-eval logs and a record keeps."""
        chains = self._task.instances[0].filtered_resps
        places = [(chain, number) for chain in chains for number in range(len(self._items))]
        for (chain, place), metrics in zip(places, self._results, strict=True):
            number, doc, requests = self._items[place]
            yield {
                "doc_id": number,
                "doc": doc,
                "target": self._task.doc_to_target(doc),
                "resps": [request.resps for request in requests],
                "filter": chain,
                "prompt_hash": self._hashes[place],
            } | metrics

"""`reproduce`: run what the claims of a method need, then judge them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instar.bench import claims
from instar.bench.claims import Judgement
from instar.bench.compare import Comparison, Listener, compare
from instar.bench.executor import Executor
from instar.bench.plan import Request


def reproduce(
    addresses: Sequence[str],
    *,
    claim: str | None = None,
    seeds: int | None = None,
    quick: bool = False,
    results: Path = Path("results"),
    jobs: int | None = None,
    executor: Executor | None = None,
    listener: Listener | None = None,
) -> tuple[list[Judgement], list[Comparison]]:
    """Judge the claims of some methods after running what has no record yet under `results/`.

    claim: only this one. seeds: instead of the claim's own number. quick: a tenth of the budget and 3 seeds, for a look; kept
    apart from the full records. jobs, executor: as of `compare`. Raises UnknownNameError and what `compare` raises.
    """
    chosen = claims.select(addresses, claim)
    comparisons = []
    for work in claims.works(chosen, seeds, quick):
        request = Request(
            problem=work.problem,
            methods=work.methods,
            settings=work.settings,
            seeds=work.seeds,
            trials=work.trials,
            tune=work.tune,
            baseline=work.baseline,
            budget=work.budget,
            least=1,
        )
        comparisons.append(
            compare(
                request,
                results / work.folder,
                jobs=jobs,
                executor=executor,
                train=work.train,
                timed=bool(work.timed),
                metrics=work.timed or None,
                listener=listener,
            )
        )
    return [claims.judge(card, c, results, quick) for card, c in chosen], comparisons

"""The door to endpoints that speak the OpenAI API (vLLM, llama.cpp, Ollama, the hosted ones), with the standard library alone."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from instar.doors import wording
from instar.doors.asking import Asking
from instar.doors.client import Client
from instar.doors.embedding import embed
from instar.doors.nearest import nearest
from instar.doors.settings import fields, meanings, number, one_of, optional, read, setting, template, text, texts, whole
from instar.doors.version import Progress, Version, require_task
from instar.doors.wire import Address, FailedError
from instar.errors import DataError, ModelError, ShapeError
from instar.gate.predictions import Cases, Json, Predictions

CHOICE_PROMPT = "{input}\n\n{choices}\n\nAnswer with the letter of the right choice alone."
"""What is asked in multiple choice unless the setting `prompt` says otherwise; {choices} is one line a choice, "A. text"."""


@dataclass(frozen=True)
class Settings:
    """What an endpoint is asked with. Names that the API has are its own (`max_tokens`)."""

    model: str = setting("", text, "name of the model (or after # in the address)")
    api: str = setting("chat", one_of("chat", "completions"), "chat (default) or completions")
    prompt: str | None = setting(
        None, template, "what is asked, with {input} and, in multiple choice, {choices}; @file.txt reads it from a file"
    )
    document_prompt: str = setting("{input}", template, "retrieval: as `prompt`, for the documents")
    k: int = setting(100, whole(1), "retrieval: how many documents are returned (default 100)")
    system: str = setting("", text, "system message of a chat; @file.txt reads it from a file")
    max_tokens: int | None = setting(None, optional(whole(1)), "most tokens of an answer")
    temperature: float | None = setting(0.0, optional(number(0, 2)), "0 by default; none leaves it to the server")
    seed: int | None = setting(None, optional(whole(-(2**63), 2**63 - 1)), "seed of the sampling")
    stop: tuple[str, ...] = setting((), texts, "text that ends an answer, or a JSON list of such texts; \\n is a line break")
    body: Mapping[str, Any] | None = setting(None, fields, "JSON object of further fields of each request")
    timeout: float = setting(60.0, number(0.01, 86_400), "seconds for one whole answer (60)")
    retries: int = setting(3, whole(0, 100), "how often an item is asked again after a failure that may pass (3)")
    concurrency: int = setting(4, whole(1, 256), "how many items are asked at the same time (4)")
    batch: int = setting(32, whole(1, 4096), "retrieval: texts in one request (32)")
    key_env: str = setting(
        "",
        text,
        "environment variable that holds the key; by default OPENAI_API_KEY, over https or to this machine only",
    )

    def sampling(self) -> dict[str, Any]:
        """The fields of a request that say how tokens are drawn, and those of `body`."""
        drawn: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}
        drawn["stop"] = (self.stop[0] if len(self.stop) == 1 else list(self.stop)) or None
        return {**{name: value for name, value in drawn.items() if value is not None}, **(self.body or {})}


class Said(NamedTuple):
    """One answer: the text, the seconds that it took, and what the server told beside it (fact -> value)."""

    text: str
    seconds: float
    notes: dict[str, str]


class Endpoint(Version):
    """A model behind an address.

    Args:
        source: the base URL, with the model after `#`: `http://127.0.0.1:8000/v1#my-model`. Without a model the endpoint's
            only one is taken. A query (`?api-version=…`) goes with every request, `user:password@` becomes basic
            authentication; neither is shown anywhere.
        settings: see SETTINGS.

    Raises ModelError for an address that cannot be one or a key that is missing, ShapeError for a setting that makes no sense.
    """

    SETTINGS: ClassVar[Mapping[str, str]] = meanings(Settings)

    def __init__(self, source: str, settings: Mapping[str, Any] | None = None) -> None:
        url, _, model = source.partition("#")
        address = Address.parse(url)
        super().__init__(address.shown + (f"#{model}" if model else ""), settings)
        self._chosen = chosen = read(Settings, self.settings)
        self._model = chosen.model or model
        self._chat = chosen.api == "chat"
        if chosen.system and not self._chat:
            raise ShapeError("A system message needs api=chat; with completions, write it into the prompt.")
        self._client = Client.open(address, chosen.timeout, chosen.key_env)

    def run(self, cases: Cases, task: str, progress: Progress | None = None) -> Predictions:
        """Ask about every case (see `Version.run`). Raises ModelError when the first items all fail in the same way."""
        require_task(task)
        begin = time.perf_counter()
        model = self._model or self._only_model()
        found = (self._search if task == "retrieval" else self._converse)(cases, task, model, progress)
        facts = {"source": self.source, "kind": "endpoint", "task": task, "model": model, "settings": dict(self.settings)}
        facts |= {"prompt": self._template(task), "system": self._chosen.system} | found.pop("facts")
        costs = {"wall_seconds": time.perf_counter() - begin}
        same: dict[str, Any] = {"ids": cases.ids, "labels": cases.labels, "inputs": cases.inputs, "columns": cases.columns}
        return Predictions(name=self.name, costs=costs, facts=facts, **same, **found)

    def _only_model(self) -> str:
        """The name of the model when the endpoint has one; empty, which leaves the choice to it, when it does not say."""

        def names_in(reply: Any) -> list[str]:
            try:
                return [self._client.shown(str(model["id"])) for model in reply["data"]]
            except (KeyError, TypeError) as error:
                raise FailedError("the reply lists no models") from error

        try:
            names = self._client.ask("/models", None, names_in)
        except FailedError as error:
            if error.refused:
                raise ModelError(f"{self.source}: {error.reason}. Is the endpoint running, and is this its address?") from error
            return ""
        if len(names) > 1:
            raise ModelError(f"{self.source} has {len(names)} models; name one after #: {', '.join(names[:10])}.")
        return names[0] if names else ""

    def _asking(self) -> Asking:
        return Asking(self.source, self._chosen.retries, self._chosen.concurrency)

    def _template(self, task: str) -> str:
        return self._chosen.prompt or (CHOICE_PROMPT if task == "multiple_choice" else "{input}")

    def _converse(self, cases: Cases, task: str, model: str, progress: Progress | None) -> dict[str, Any]:
        """The answers to the tasks that are answered in words, as columns of Predictions."""
        template = self._template(task)
        if task == "multiple_choice" and cases.choices is None:
            raise DataError(f"{cases.name}: multiple choice needs the choices of each item.")

        def ask(item: int) -> Said:
            choices = cases.choices[item] if cases.choices else []
            return self._say(fill(template, cases.inputs[item], choices), model)

        asking = self._asking()
        said = asking.all(len(cases), ask, progress)
        outputs: list[Json] = []
        errors: dict[str, str] = {}
        known = [*(cases.labels or ()), *(label for _, label in cases.examples)]
        for item, answer in enumerate(said):
            output: Json = None
            if isinstance(answer, FailedError):
                errors[cases.ids[item]] = answer.reason
            elif task == "regression":
                output = wording.number(answer.text)
                if output is None:
                    errors[cases.ids[item]] = f"not one number: {answer.text[:80]!r}"
            elif task == "multiple_choice":
                output = wording.choice(answer.text, (cases.choices or [])[item], "{choices}" in template)
            else:
                output = wording.label(answer.text, known) if task == "classification" else answer.text
            outputs.append(output)
        good = [answer for answer in said if isinstance(answer, Said)]
        facts: dict[str, Any] = {"retries": asking.retried}
        for fact in ("served_model", "system_fingerprint"):
            facts |= {fact: values} if (values := sorted({a.notes[fact] for a in good if fact in a.notes})[:20]) else {}
        facts["cut_off"] = sum(answer.notes.get("finish_reason") == "length" for answer in good)
        seconds = np.array([answer.seconds if isinstance(answer, Said) else np.nan for answer in said])
        return {"outputs": outputs, "errors": errors, "seconds": seconds, "facts": facts}

    def _say(self, prompt: str, model: str) -> Said:
        """One answer. Raises FailedError."""
        system = self._chosen.system
        messages = [{"role": "system", "content": system}] if system else []
        content: dict[str, Any] = (
            {"messages": [*messages, {"role": "user", "content": prompt}]} if self._chat else {"prompt": prompt}
        )
        body = {**({"model": model} if model else {}), **content, **self._chosen.sampling()}
        begin = time.perf_counter()
        text, notes = self._client.ask("/chat/completions" if self._chat else "/completions", body, self._read)
        return Said(text, time.perf_counter() - begin, notes)

    def _read(self, reply: Any) -> tuple[str, dict[str, str]]:
        try:
            first = reply["choices"][0]
            text = first["message"]["content"] if self._chat else first["text"]
            beside = {"served_model": reply.get("model"), "system_fingerprint": reply.get("system_fingerprint")}
            beside["finish_reason"] = first.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            where = "choices[0].message.content" if self._chat else "choices[0].text"
            raise FailedError(f"the reply is not of the expected shape (no {where})") from error
        notes = {what: self._client.shown(value) for what, value in beside.items() if isinstance(value, str)}
        if not isinstance(text, str):
            raise FailedError(f"the reply holds no text (finish_reason: {notes.get('finish_reason', 'not given')})")
        return self._client.redact(wording.utf8(text)), notes

    def _search(self, cases: Cases, task: str, model: str, progress: Progress | None) -> dict[str, Any]:
        """The nearest documents of each query, as columns of Predictions."""
        if not cases.documents:
            raise DataError(f"{cases.name}: retrieval needs documents to search in.")
        fields = {**({"model": model} if model else {}), **(self._chosen.body or {})}
        asking, again = self._asking(), self._asking()
        texts = [fill(self._chosen.document_prompt, text, []) for _, text in cases.documents]
        documents, _ = embed(texts, fields, self._client, asking, self._chosen.batch)
        for (name, _), vector in zip(cases.documents, documents, strict=True):
            if isinstance(vector, FailedError):
                raise ModelError(f"{self.source}: no vector for document '{name[:60]}': {vector.reason}. Every query needs all.")
        asked = [fill(self._template(task), text, []) for text in cases.inputs]
        queries, seconds = embed(asked, fields, self._client, again, self._chosen.batch, progress)
        good = [i for i, vector in enumerate(queries) if not isinstance(vector, FailedError)]
        errors = {cases.ids[i]: vector.reason for i, vector in enumerate(queries) if isinstance(vector, FailedError)}
        outputs: list[Json] = [None] * len(cases)
        if good:
            matrix = _stack([queries[i] for i in good], self.source)
            names = [name for name, _ in cases.documents]
            found = nearest(matrix, _stack([*documents, matrix[0]], self.source)[:-1], names, self._chosen.k)
            for i, ids in zip(good, found, strict=True):
                outputs[i] = ids
        whole = matrix if len(good) == len(cases) else None
        facts = {
            "retries": asking.retried + again.retried,
            "documents": len(documents),
            "document_prompt": self._chosen.document_prompt,
        }
        return {"outputs": outputs, "errors": errors, "seconds": seconds, "embeddings": whole, "facts": facts}


def fill(template: str, text: str, choices: Sequence[str]) -> str:
    """A prompt: the text of an item and its choices put into a template, in one pass, so that braces in either stay text."""
    parts = {"{input}": text, "{choices}": wording.listed(choices)}
    return re.sub(r"\{input\}|\{choices\}", lambda match: parts[match[0]], template)


def _stack(vectors: Sequence[Any], source: str) -> Any:
    if len({len(vector) for vector in vectors}) != 1:
        raise ModelError(f"{source} gives vectors of different lengths: {sorted({len(v) for v in vectors})[:5]}.")
    return np.stack(vectors)

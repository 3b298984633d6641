"""Grammars of clients, checked before the engine hears of them."""

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from hone.core.errors import RequestError
from hone.engine.notation import check_grammar
from hone.engine.params import Grammar
from hone.serve.openai.errors import ApiError

_LONGEST = 200_000
_MOST_WAITING = 32
_REMEMBERED = 4096


class GrammarCheck:
    """Finds out whether grammars can be used, in a thread: one may take seconds.

    One that is known to be good costs the time of its digest, and waits for no other.
    """

    def __init__(self) -> None:
        self._lane = ThreadPoolExecutor(1, "grammars")
        self._waiting = 0
        self._good: OrderedDict[bytes, None] = OrderedDict()

    async def __call__(self, grammar: Grammar | None) -> None:
        """Return if ``grammar`` can be used, or is none.

        Raises:
            RequestError: it is wrong, too large or too complex, or nothing can match it.
            ApiError: 429, too many others wait to be checked.
        """
        if grammar is None:
            return
        if len(grammar.source) > _LONGEST:
            raise RequestError(
                f"The grammar has {len(grammar.source):,} characters; at most {_LONGEST:,} are "
                "read. Make it shorter."
            )
        text = f"{grammar.kind} {grammar.source}".encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(text).digest()
        if digest in self._good:
            self._good.move_to_end(digest)
            return
        if self._waiting >= _MOST_WAITING:
            raise ApiError(
                429, "Too many new grammars are being checked; try again in 5 s.", None, "busy", 5
            )
        self._waiting += 1
        try:
            await asyncio.get_running_loop().run_in_executor(self._lane, check_grammar, grammar)
        finally:
            self._waiting -= 1
        self._good[digest] = None
        if len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)

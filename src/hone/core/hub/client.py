"""The hub as this process sees it, and a sentence for each of its refusals."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hone.core.errors import CheckpointError, HoneError
from hone.core.files import explain_os_error
from hone.core.hub.names import SCHEME, HubName

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
OFFLINE = "the hub may not be asked (HF_HUB_OFFLINE is set)"


class UnreachableError(CheckpointError):
    """The hub gave no answer at all."""


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the hub is, where its files are kept here, and whether it may be asked.

    Attributes:
        endpoint: from ``HF_ENDPOINT``, else the public hub's address.
        cache: from ``HF_HUB_CACHE`` or ``HF_HOME``, else the library's own place.
        offline: ``HF_HUB_OFFLINE`` is set.
        token: None for the one of ``HF_TOKEN`` or ``hf auth login``.
    """

    endpoint: str
    cache: Path
    offline: bool
    token: str | None = None

    @classmethod
    def of_process(cls, cache: str | Path | None = None, token: str | None = None) -> "Hub":
        """The hub that the environment speaks of now, and not when the library was imported."""
        from huggingface_hub import constants

        said = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        return cls(
            endpoint=(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/"),
            cache=Path(cache or constants.HF_HUB_CACHE).expanduser(),
            offline=said or constants.HF_HUB_OFFLINE,
            token=token,
        )

    def api(self) -> "HfApi":
        """The library's client for this hub."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token, library_name="hone")

    @contextmanager
    def explained(self, wanted: HubName, absent: str = "") -> Iterator[None]:
        """Turn what the library raises into one sentence about ``wanted``.

        Args:
            absent: the beginning of the sentence where ``wanted`` might have been a path too.

        Raises:
            UnreachableError: the hub gave no answer.
            CheckpointError: the hub refuses, or does not have what was asked for.
            CapacityError: the disk is full.
        """
        from huggingface_hub import errors

        # The library's word for what fails on the way; which package it is from has changed.
        transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
        try:
            yield
        except HoneError:
            raise
        except errors.HfHubHTTPError as error:
            raise CheckpointError(self._refusal(error, wanted, absent)) from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, transport) as error:
            raise UnreachableError(f"{wanted}: {self.unreachable(error)}.") from error
        except OSError as error:
            raise explain_os_error(error, self.cache) from error
        except ValueError as error:
            raise CheckpointError(f"{wanted}: this was refused: {_first_line(error)}") from error

    def unreachable(self, error: Exception | None = None) -> str:
        """Why the hub gave no answer."""
        if self.offline:
            return OFFLINE
        detail = f" ({_first_line(error.__cause__ or error)})" if error is not None else ""
        return f"the hub at {self.endpoint} cannot be reached{detail}"

    def _refusal(self, error: Any, wanted: HubName, absent: str) -> str:
        from huggingface_hub import errors

        status = error.response.status_code
        if isinstance(error, errors.GatedRepoError):
            return (
                f"{wanted} is gated: accept its terms on {self.endpoint}/{wanted.repository}, then "
                f"{_LOGIN}."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{SCHEME}{wanted.repository} has no revision {wanted.revision or 'main'!r}."
        said = _first_line(error.server_message or "")
        said = f" ({said})" if said else ""
        # The hub says 401, too, where there is nothing, so as not to tell what is private.
        if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
            return (
                f"{absent}{'and the' if absent else 'The'} hub at {self.endpoint} shows no model "
                f"{wanted.repository}: check the spelling, or {_LOGIN} if it is private."
            )
        if status == 401:
            return f"{wanted}: the hub does not know who asks{said}; {_LOGIN}."
        if status == 403:
            return (
                f"{wanted}: the hub forbids this{said}; use a token with the right to it and "
                f"{_LOGIN}."
            )
        if status == 429:
            return f"{wanted}: too many requests{said}; wait some minutes and try again."
        return f"{wanted}: the hub at {self.endpoint} answered {status}{said}; try again later."


def _first_line(said: object) -> str:
    return str(said).strip().partition("\n")[0]

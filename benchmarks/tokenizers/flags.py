"""The flags of the suite tokenizers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from benchmarks import flags
from benchmarks.errors import UserError
from benchmarks.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Flags(flags.Flags):
    """Tab. 1: which tokenizer makes the best semantic IDs? RQ-KMeans+ against rivals and UA-SID."""

    embeddings: Annotated[Path | None, flags.flag("FILE", "none")] = None
    """A matrix of your own (.npy, .safetensors, .parquet) beside the others."""

    def complete(self, settings: Settings, before: flags.Stored) -> Settings:
        """Return the settings with the suite's own."""
        if self.embeddings is None:
            return settings
        from gpr_rl.tokenizers.files import load_matrix

        try:
            load_matrix(self.embeddings)
        except ValueError as error:
            raise UserError(f"--embeddings {error}") from error
        return replace(settings, embeddings=self.embeddings.absolute())

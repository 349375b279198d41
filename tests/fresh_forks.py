"""Children out of a server that has imported what they need and computed nothing.

To fork a process in which torch has computed may stop the child for ever: the threads that held its locks are
not there. To start each child anew costs its imports.
"""

from multiprocessing import get_context

__all__ = ["FRESH_FORKS"]

FRESH_FORKS = get_context("forkserver")
FRESH_FORKS.set_forkserver_preload(
    ["hf_mm.data.region_writing", "hf_mm.models.vit.modeling_vit", "hf_mm.training.phased"]
)

"""Token shards on disk, and the order in which training sees them."""

from terakoya.data.batch import Batch
from terakoya.data.build import build
from terakoya.data.loader import Loader, Span
from terakoya.data.mix import Mix
from terakoya.data.order import permute
from terakoya.data.shards import Shards

__all__ = ["Batch", "Loader", "Mix", "Shards", "Span", "build", "permute"]

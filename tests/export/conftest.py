from __future__ import annotations

from tiny_exports import exports as exports

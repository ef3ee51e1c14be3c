"""Pictures in requests: where they are in messages, what may be one, how it is made ready, where in a prompt it stands.

messages ── parts ──► sources ── header, limits ── decode ── resize, cut ──► pixels ── placed ──► ids, pictures
             400       data:      400               thread                    bytes                 400
"""

from quire.frontend.media.parts import Source
from quire.frontend.media.protocol import Media, Ready, TextOnly
from quire.frontend.media.select import load_media

__all__ = ["Media", "Ready", "Source", "TextOnly", "load_media"]

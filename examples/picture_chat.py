"""Ask a served model about picture files.

quire serve llava-hf/llava-1.5-7b-hf
python examples/picture_chat.py photo.jpg another.png --ask "What is the difference?"
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
from pathlib import Path
from typing import Any

from openai import OpenAI


def picture_part(path: Path) -> dict[str, Any]:
    """A file as a part of a message: the picture itself, as a server opens no files and no connections for others."""
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return {
        "type": "image_url",
        "image_url": {"url": f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"},
    }


def main() -> None:
    """Print the answer as it comes, then how many tokens there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path, help="PNG, JPEG, WEBP or GIF files")
    parser.add_argument("--ask", default="What do you see?")
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--max-tokens", type=int, default=200)
    args = parser.parse_args()
    client = OpenAI(base_url=args.base_url, api_key=args.api_key)
    model = client.models.list().data[0].id
    content = [*map(picture_part, args.pictures), {"type": "text", "text": args.ask}]
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_completion_tokens=args.max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage is not None:
            print(f"\n{chunk.usage.prompt_tokens} tokens of prompt, {chunk.usage.completion_tokens} of answer")


if __name__ == "__main__":
    main()

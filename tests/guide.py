"""The pages that tell a user what to type: the README and the guides that it leads to."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/usage.md", "docs/settings.md", "docs/troubleshooting.md", "docs/results.md")
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
GUIDE = "\n".join(TEXTS.values())


def commands_in(text: str) -> list[str]:
    """Every line of its bash blocks, each once."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
    return list(dict.fromkeys(lines))


def prose_of(text: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)

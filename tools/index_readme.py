"""Make the links and pictures of README.md absolute, for the package index: it shows the page without the repository.

    python -m tools.index_readme https://HOST/OWNER/sdpo-bench --version v0.2.0
    python -m build
    git checkout README.md

Only in the copy that is built: in a checkout relative links work offline and on every branch.
"""

import re
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def absolute(text: str, home: str, version: str, root: Path = ROOT) -> str:
    """The page with every relative target under ``home``: pictures as raw files, pages and folders as they are shown.

    Args:
        home: address of the repository, on a host with ``/raw/``, ``/blob/`` and ``/tree/``.
        version: tag, branch or commit that the links name.

    Raises:
        click.UsageError: a target that is not in the repository.
    """

    def target(found: re.Match[str]) -> str:
        picture, label, path = found.groups()
        file = root / path.partition("#")[0]
        if not file.exists():
            raise click.UsageError(f"README.md links to '{path}', which is not in the repository.")
        view = "raw" if picture else "tree" if file.is_dir() else "blob"
        return f"{picture}[{label}]({home.rstrip('/')}/{view}/{version}/{path})"

    return LINK.sub(target, text)


@click.command()
@click.argument("home")
@click.option("--version", required=True, help="Tag, branch or commit that the links name.")
def main(home: str, version: str) -> None:
    """Rewrite README.md with links to HOME, the address of the repository."""
    page = ROOT / "README.md"
    page.write_text(absolute(page.read_text(encoding="utf-8"), home, version), encoding="utf-8")
    click.echo(f"{page}: links lead to {home}. After the build: git checkout README.md")


if __name__ == "__main__":
    main()

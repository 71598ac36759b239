"""Real clients read the examples: those that are quick to install. `python -m tests.clients` runs all."""

from __future__ import annotations

from pathlib import Path

import pypdfium2
import pytest

from tests.clients.harness import PAGES, PDF, CannotInstall, Client, clients, complaint, read

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def pdf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last page of the example PDF, which is the shortest."""
    path = tmp_path_factory.mktemp("clients") / "page.pdf"
    with pypdfium2.PdfDocument(PDF) as document:
        for _ in PAGES[:-1]:
            document.del_page(0)
        document.save(path)
    return path


@pytest.mark.parametrize("client", [client for client in clients() if client.in_ci], ids=lambda client: client.name)
def test_a_client_reads_the_examples(client: Client, base_url: str, pdf: Path) -> None:
    try:
        readings = read(client, base_url, pdf)
    except CannotInstall as reason:
        pytest.skip(str(reason))
    assert readings
    wrong = {f"{reading.document}, {reading.how}": complaint(reading, PAGES[-1:]) for reading in readings}
    assert not any(wrong.values()), wrong

"""The output folder of a corpus job: started, resumed, assembled."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.corpus import Collector, Corpus, CorpusError, CorpusPage, find

JOB = {"format": "parquet", "options": {"dpi": 144}}


def begun(folder: Path, urls: list[str], shard_size: int = 2) -> Corpus:
    corpus = Corpus(str(folder))
    corpus.begin(lambda: urls, shard_size=shard_size, job=JOB)
    return corpus


def page(url: str, number: int, of: int, text: str = "") -> CorpusPage:
    return CorpusPage(url, number, of, markdown=text, finish_reason="stop")


class TestBegin:
    def test_documents_are_sorted_unique_and_divided_into_shards(self, tmp_path: Path) -> None:
        corpus = begun(tmp_path, ["c", "a", "b", "a", "d", "e"])
        assert [(each.url, each.shard) for each in corpus.documents()] == [
            ("a", 0),
            ("b", 0),
            ("c", 1),
            ("d", 1),
            ("e", 2),
        ]

    def test_a_resumed_job_ignores_new_documents(self, tmp_path: Path) -> None:
        begun(tmp_path, ["a", "b"])
        corpus = Corpus(str(tmp_path))
        assert corpus.begin(lambda: ["a", "b", "new"], shard_size=2, job=JOB)
        assert [each.url for each in corpus.documents()] == ["a", "b"]

    def test_a_job_cannot_be_resumed_with_other_options(self, tmp_path: Path) -> None:
        begun(tmp_path, ["a"])
        with pytest.raises(CorpusError, match="another options"):
            Corpus(str(tmp_path)).begin(lambda: ["a"], shard_size=2, job=JOB | {"options": {"dpi": 72}})

    def test_a_job_needs_documents(self, tmp_path: Path) -> None:
        with pytest.raises(CorpusError, match="nothing"):
            begun(tmp_path, [])


class TestKeep:
    def test_a_shard_is_done_when_it_has_been_written(self, tmp_path: Path) -> None:
        corpus = begun(tmp_path, ["a.pdf", "b.pdf", "c.pdf"])
        assert corpus.done() == set()
        broken = CorpusPage("b.pdf", 0, 0, error="It is damaged.")
        corpus.keep(0, {0: [page("a.pdf", 1, 2, "one"), page("a.pdf", 2, 2, "two")], 1: [broken]}, "parquet")
        assert corpus.done() == {0}
        table = pq.read_table(tmp_path / "pages" / "00000.parquet").to_pylist()
        assert [(row["url"], row["page"], row["markdown"], row["error"]) for row in table] == [
            ("a.pdf", 1, "one", None),
            ("a.pdf", 2, "two", None),
            ("b.pdf", 0, "", "It is damaged."),
        ]
        assert corpus.summary() == (2, 2, [{"url": "b.pdf", "page": 0, "error": "It is damaged."}])

    def test_markdown(self, tmp_path: Path) -> None:
        corpus = begun(tmp_path, ["s3://bucket/two words.pdf"])
        pages = [page("s3://bucket/two words.pdf", 1, 2, "one"), page("s3://bucket/two words.pdf", 2, 2, "two")]
        corpus.keep(0, {0: pages}, "markdown")
        folder = tmp_path / "documents" / "00000"
        assert (folder / "0000000-two_words.md").read_text() == "one\n\ntwo"
        data = json.loads((folder / "0000000-two_words.json").read_text())
        assert [each["page"] for each in data["pages"]] == [1, 2]
        assert data["error"] is None

    def test_an_interrupted_shard_is_not_done(self, tmp_path: Path) -> None:
        corpus = begun(tmp_path, ["a"])
        (tmp_path / "done").mkdir()
        (tmp_path / "done" / "00000.json.part").write_text("{")
        assert corpus.done() == set()


class TestCollector:
    def test_pages_may_arrive_in_any_order(self, tmp_path: Path) -> None:
        collector = Collector(begun(tmp_path, ["a", "b", "c"]).documents())
        assert collector.add(0, 1, page("b", 1, 1)) is None
        assert collector.add(0, 0, page("a", 2, 2)) is None
        assert collector.add(1, 2, page("c", 1, 1)) == {2: [page("c", 1, 1)]}
        assert collector.add(0, 0, page("a", 2, 2)) is None  # again, after an actor crashed
        assert collector.add(0, 0, page("a", 1, 2)) == {0: [page("a", 1, 2), page("a", 2, 2)], 1: [page("b", 1, 1)]}

    def test_a_document_that_cannot_be_opened_is_complete(self, tmp_path: Path) -> None:
        collector = Collector(begun(tmp_path, ["a"]).documents())
        broken = CorpusPage("a", 0, 0, error="gone")
        assert collector.add(0, 0, broken) == {0: [broken]}


class TestFind:
    def test_a_folder(self, tmp_path: Path) -> None:
        for name in ("a.PDF", "deep/b.png", "notes.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        found = find(str(tmp_path), suffixes=["pdf", "png"])
        assert [Path(url).name for url in sorted(found)] == ["a.PDF", "b.png"]

    def test_parquet_files(self, tmp_path: Path) -> None:
        for number in range(2):
            pq.write_table(pa.table({"link": [f"https://x/{number}.pdf", None]}), tmp_path / f"{number}.parquet")
        found = find(f"{tmp_path}/*.parquet", column="link", suffixes=[])
        assert sorted(found) == ["https://x/0.pdf", "https://x/1.pdf"]

    def test_a_missing_column(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"link": ["a"]}), tmp_path / "urls.parquet")
        with pytest.raises(CorpusError, match="column url"):
            find(str(tmp_path / "urls.parquet"), suffixes=[])

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CorpusError, match="no folder"):
            find(str(tmp_path / "nowhere"), suffixes=["pdf"])

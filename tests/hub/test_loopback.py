"""The Hub of these tests answers the real client as the Hub does."""


def test_files_branches_and_deletions(hub, stranger):
    """In a process of its own: the client reads its endpoint when it is imported."""
    stranger.run("""
from pathlib import Path
from huggingface_hub import HfApi, ModelCard, snapshot_download

api = HfApi()
assert api.whoami()["name"] == "me"
api.create_repo("files")
api.create_repo("files", exist_ok=True)
Path("folder/inner").mkdir(parents=True)
Path("folder/inner/weights.safetensors").write_bytes(b"large")
Path("folder/note.txt").write_text("small")
api.upload_folder(repo_id="me/files", folder_path="folder", commit_message="Two files")
assert set(api.list_repo_files("me/files")) == {".gitattributes", "inner/weights.safetensors", "note.txt"}
top = {entry.path for entry in api.list_repo_tree("me/files")}
assert top == {".gitattributes", "inner", "note.txt"}
assert {entry.path for entry in api.list_repo_tree("me/files", "inner")} == {"inner/weights.safetensors"}
[info] = api.get_paths_info("me/files", ["inner/weights.safetensors", "none"])
assert info.size == 5 and info.lfs.size == 5

api.create_branch("me/files", branch="draft")
api.upload_file(repo_id="me/files", path_in_repo="note.txt", path_or_fileobj=b"new", revision="draft")
assert {branch.name for branch in api.list_repo_refs("me/files").branches} == {"main", "draft"}
assert Path(snapshot_download("me/files"), "note.txt").read_text() == "small"
draft = Path(snapshot_download("me/files", revision="draft"))
assert (draft / "note.txt").read_text() == "new"
assert (draft / "inner" / "weights.safetensors").read_bytes() == b"large"

api.delete_file("note.txt", "me/files")
api.delete_folder("inner", "me/files")
assert api.list_repo_files("me/files") == [".gitattributes"]
api.delete_repo("me/files")
assert not api.repo_exists("me/files")
""")
    assert "me/files" not in hub.repositories


def test_what_is_not_there_is_named_as_the_hub_does(stranger):
    stranger.run("""
from huggingface_hub import HfApi, errors, hf_hub_download

HfApi().create_repo("empty", exist_ok=True)
for place, error in [
    (dict(repo_id="me/none", filename="a"), errors.RepositoryNotFoundError),
    (dict(repo_id="me/empty", filename="a", revision="none"), errors.RevisionNotFoundError),
    (dict(repo_id="me/empty", filename="a"), errors.EntryNotFoundError),
]:
    try:
        hf_hub_download(**place)
    except error:
        continue
    raise AssertionError(place)
""")


def test_nobody_writes_without_a_token(hub, stranger):
    stranger.run("""
from huggingface_hub import HfApi, errors

try:
    HfApi(token=False).create_repo("theirs")
except errors.HfHubHTTPError as error:
    assert error.response.status_code == 401
else:
    raise AssertionError("created")
""")
    assert "me/theirs" not in hub.repositories


def test_an_unchanged_file_is_not_uploaded_again(hub, stranger):
    push = """
from huggingface_hub import HfApi

api = HfApi()
api.create_repo("twice", exist_ok=True)
api.upload_file(repo_id="me/twice", path_in_repo="a.safetensors", path_or_fileobj=b"the same weights")
"""
    stranger.run(push)
    before = len(hub.requests)
    stranger.run(push)
    assert not [request for request in hub.requests[before:] if request.startswith("PUT")]

"""Trust in image roots that data name: those that this user's own `rs-rlhf curate` has sealed.

A folder of curated rows names the folder that their images lie in, which is elsewhere. Data of strangers could name
`/` and read any file. So `curate` seals the name with a key that only this user has, and a root outside of the data
is used without being asked for if its seal is right.

Left out: trusting other users' folders (give `--image_root`).
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path


def seal(root: str) -> str:
    """Returns the seal of an image root, `""` if there is no place to keep a key."""
    try:
        return hmac.new(_key(), root.encode("utf-8", "surrogatepass"), "sha256").hexdigest()
    except OSError:
        return ""


def is_trusted(folder: Path, root: Path, given: object) -> bool:
    """Whether images of data in a folder may be read from a root that the data name with a seal."""
    own = seal(str(root))
    sealed = (
        bool(own)
        and isinstance(given, str)
        and hmac.compare_digest(own.encode(), given.encode("utf-8", "surrogatepass"))
    )
    return sealed or root.resolve().is_relative_to(folder.resolve())


def _key() -> bytes:
    """This user's key, made when it is first needed."""
    file = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "rs-rlhf" / "curate.key"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.{os.getpid()}")
        new.touch(mode=0o600)
        new.write_bytes(secrets.token_bytes(32))
        try:
            os.link(new, file)  # whole or not there; another process may have been first
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return file.read_bytes()

"""The options of `rs-rlhf app`, and their check before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..data.columns import ColumnOptions
from ..data.rows import RSRM
from ..errors import OptionError
from ..imagery.arguments import PixelOptions, ReadingOptions
from ..options import check_place, option
from ..scoring.http import LOCAL, Limits
from ..scoring.several import SeveralOptions, is_url, model_names

DEFAULT_SCORE_MODEL = "aid-rsicd-tiny"
NONE = "none"


@dataclass(kw_only=True)
class AppOptions(SeveralOptions, ColumnOptions, PixelOptions, ReadingOptions):
    """Ask models about tiles, see their answers scored, and choose between texts, in a browser.

    The page shows what the options give: asking needs a policy, scoring a score model, choosing --label. It answers
    this machine only unless --host says otherwise; with RS_RLHF_SERVER_TOKEN set, it asks for that as a password.
    """

    policy: str | None = option(None, "Folder, hub id or address (http://…) of a vision-language model that answers.")
    policy_b: str | None = option(None, "A second one, whose answers are shown beside those of --policy.")
    score_model: str | None = option(
        None,
        "Name in reward_models/, folder, hub id or server's address of a score model; several (a,b,c) are combined; "
        f"none: no scores. By default {DEFAULT_SCORE_MODEL}, which comes with the package.",
    )
    tiles: Path | None = option(
        None, "Folder of images to choose from; by default some scenes are drawn.", metavar="FOLDER"
    )
    label: str | None = option(
        None,
        "Preferences of any form, Label Studio's tasks, or rows with several answers (`completions`): texts to choose "
        "between.",
        metavar="FILE",
    )
    label_split: str | None = option(None, "Split of --label to read.")
    label_log: Path | None = option(
        None, "Where choices are kept, a line each; by default FILE.choices.jsonl.", writes="file"
    )
    label_output: Path | None = option(
        None, "Preferences to write, as `rs-rlhf reward` reads them; by default FILE.preferred.jsonl.", writes="file"
    )
    label_order: Literal["disagreement", "random"] | None = option(
        None,
        "Which pair comes next: the one that several score models differ about most, or of which one model is least "
        "sure; or any. By default disagreement if there is a score model.",
    )
    seed: int = option(0, "Draws the order and the sides of the pairs, and the policies' answers.", least=0)
    max_new_tokens: int = option(64, "Longest answer, in tokens.", least=1)
    host: str = option(LOCAL[0], "Address to listen on; by default this machine only.")
    port: int = option(8323, "Port to listen on; 0 takes a free one.")
    device: str | None = option(None, "Device of the models; by default accelerate's choice.")
    dtype: str | None = option(None, "Type of the weights, such as bfloat16; by default the checkpoint's.")
    max_image_pixels: int = option(50_000_000, "Images of more pixels are refused before they are decoded.")
    max_bytes: int = option(Limits.max_bytes, "Bytes of an uploaded file at most.", least=1)

    def check(self) -> None:
        """Refuses options that cannot be used, and an app whose packages are missing."""
        if not find_spec("gradio"):
            raise OptionError('Gradio is not installed; install it with `pip install "rs-rlhf[app]"`.', "gradio")
        self.reader_options()
        if (self.policy, self.policy_b, self.score_name, self.label) == (None,) * 4:
            raise OptionError("there is nothing to show; give --policy, --score_model or --label.", "policy")
        if self.policy_b is not None and self.policy is None:
            raise OptionError("--policy_b is a second policy; give the first as --policy.", "policy")
        self.check_several(self.score_name, "score_model")
        if self.image_hosts:
            raise OptionError("the app downloads no images; leave --image_hosts out.", "image_hosts")
        given = {name: getattr(self, name) for name in ("label_split", "label_log", "label_output", "label_order")}
        if self.label is None and (unread := [name for name, value in given.items() if value is not None]):
            raise OptionError(
                f"--{unread[0]} is read with --label alone; name the texts to choose between.", unread[0]
            )
        if self.label_order == "disagreement" and self.score_name is None:
            raise OptionError("--label_order disagreement needs a --score_model; give one, or random.", "label_order")
        if self.tiles is not None and not self.tiles.is_dir():
            raise OptionError(f"--tiles {self.tiles} is no folder; name one of images.", "tiles")
        if self.label is not None:
            self._check_places()
        self._check_score_model()

    def _check_places(self) -> None:
        """Refuses to write over files that are somebody's: those that are read, or that no choices led to."""
        for name, path in (("label_log", self.log), ("label_output", self.output)):
            check_place(path, "file", name)
            if path.exists() and Path(self.file).exists() and path.samefile(self.file):
                raise OptionError(f"--{name} {path} is the file that is read; name another one.", name)
        if self.output.exists() and not self.log.exists():
            detail = f"--label_output {self.output} exists, and there are no choices yet that it could be made of"
            raise OptionError(f"{detail}; name another file, or move it away.", "label_output")

    def _check_score_model(self) -> None:
        """Refuses a score model that is not there before anything is loaded."""
        from ..scoring.cards import find_card, refuse_unmade

        for name in model_names(self.score_name):
            if not is_url(name):
                refuse_unmade(find_card(name))

    @property
    def score_name(self) -> str | None:
        """The score model, `None` if there is to be none."""
        return None if self.score_model == NONE else self.score_model or DEFAULT_SCORE_MODEL

    @property
    def order(self) -> str:
        """The order of the pairs."""
        return self.label_order or ("random" if self.score_name is None else "disagreement")

    @property
    def file(self) -> str:
        """What is read of --label, without `rsrm:` before it."""
        return str(self.label).removeprefix(RSRM)

    @property
    def log(self) -> Path:
        """Where choices are kept."""
        return self.label_log or self._beside(".choices.jsonl")

    @property
    def output(self) -> Path:
        """Where preferences are written."""
        return self.label_output or self._beside(".preferred.jsonl")

    def _beside(self, ending: str) -> Path:
        """A file beside the texts to choose between, of a Hub id in the working folder."""
        path = Path(self.file)
        name = path.stem + ending
        return path.with_name(name) if path.exists() else Path(name)

"""Free photographs and textures that Debian packages hold: fetched, unpacked, and read file by file, archives too."""

import re
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


PACKAGES = (
    "gnome-backgrounds",
    "mate-backgrounds",
    "ukui-wallpapers",
    "plasma-workspace-wallpapers",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "propaganda-debian",
    "mypaint-data",
    "mypaint-data-extras",
    "gimp-data",
    "krita-data",
    "hugin-data",
    "tuxpaint-stamps-default",
    "supertuxkart-data",
    "0ad-data",
    "nexuiz-textures",
    "ufoai-textures",
    "openarena-081-textures",
    "openarena-data",
    "colobot-common-textures",
    "sweethome3d-furniture",
    "trigger-rally-data",
    "torcs-data",
    "megaglest-data",
    "warzone2100-data",
    "redeclipse-data",
    "stellarium-data",
    "endless-sky-data",
    "flightgear-data-base",
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tga", ".bmp", ".dds", ".tif", ".tiff")
ARCHIVES = (".zip", ".pk3", ".sh3f", ".sh3t")
# Maps for a renderer (directions, gloss, glow) look like nothing that a camera sees; nor do icons, letters and menus.
NO_PHOTOGRAPH = re.compile(
    r"(^|[/_.-])(norm|normal|normals|normalmap|nm|nrm|spec|specular|gloss|glow|bump|height|local|luma|ao|mask|alpha|"
    r"lightmap|shirt|pants|reflect|icons?|fonts?|cursors?|flags?|emblems?|splines?|gui|menu|hud|session|portraits?)"
    r"([/_.-]|\d*$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """A file of pictures' bytes: `path` on disk, and `member` where it lies in an archive there."""

    package: str
    path: Path
    name: str  # within the package or folder, with the archive's name before a member's
    member: str | None = None

    def read(self) -> bytes:
        """Return the file's bytes."""
        if self.member is None:
            return self.path.read_bytes()
        return _open_archive(self.path).read(self.member)  # which threads may share


@lru_cache(maxsize=4)
def _open_archive(path: Path) -> zipfile.ZipFile:
    """Keep an archive open: one of 0 A.D.'s lists so many members that reading the list takes longer than a picture."""
    return zipfile.ZipFile(path)


def fetch(package: str, folder: Path) -> Path:
    """
    Download a package by `apt-get download` and unpack it into `folder`/NAME; what is there already is kept.

    Returns:
        The folder that it was unpacked into, with its version in `folder`/NAME.version.

    Raises:
        ValueError: if apt does not know the package or cannot fetch it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unpacked, version = folder / package, folder / f"{package}.version"
    if version.exists():
        return unpacked
    archives = sorted(folder.glob(f"{package}_*.deb"))
    if not archives:
        done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
        archives = sorted(folder.glob(f"{package}_*.deb"))
        if done.returncode or not archives:
            raise ValueError(
                f"package {package!r} cannot be fetched ({done.stderr.strip()[-200:]}): run `apt-get update`, leave it out "
                "of --packages, or give --folder."
            )
    subprocess.run(["dpkg-deb", "-x", archives[-1], unpacked], check=True)
    number = subprocess.run(["dpkg-deb", "-f", archives[-1], "Version"], check=True, capture_output=True, text=True)
    version.write_text(number.stdout.strip() + "\n", encoding="utf-8")
    return unpacked


def copyright_file(unpacked: Path, package: str) -> Path:
    """Say where an unpacked package's own copyright file lies, if it has one."""
    return unpacked / "usr/share/doc" / package / "copyright"


def licenses(unpacked: Path, package: str) -> list[str]:
    """List the short names of the licenses that a package's own copyright file gives, sorted; none if it gives none."""
    path = copyright_file(unpacked, package)
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return sorted({name.strip() for name in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)})


def find_sources(package: str, folder: Path) -> Iterator[Source]:
    """Find the pictures of a folder, those in its archives too, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix.lower() in PICTURES and not _is_no_photograph(name):
            yield Source(package, path, name)
        elif path.suffix.lower() in ARCHIVES and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = sorted(archive.namelist())
            for member in members:
                plain = member.removesuffix(".cached.dds")  # 0 A.D. keeps "wall.png" as "wall.png.cached.dds"
                if member.lower().endswith(PICTURES) and not _is_no_photograph(plain):
                    yield Source(package, path, f"{name}/{member}", member)


def _is_no_photograph(name: str) -> bool:
    return bool(NO_PHOTOGRAPH.search(re.sub(r"\.[A-Za-z0-9]{2,4}$", "", name)))


__all__ = ["PACKAGES", "Source", "copyright_file", "fetch", "find_sources", "licenses"]

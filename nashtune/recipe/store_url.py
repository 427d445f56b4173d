"""Where committed units may go: a folder, or a URL of an object store."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Stores whose objects appear whole. Others (sftp, hdfs, memory) would show half an object, or only to one process."""
ACCEPTED = f"a folder that all workers share, or a URL that begins with {', '.join(f'{s}://' for s in SCHEMES)}"
PASSWORD = re.compile(r"[^/@]*:[^/@]*@")


def scheme_of(url: str) -> str:
    """ "file" for folders."""
    return url.partition("://")[0] if "://" in url else "file"


def check_url(url: str) -> str:
    """``url`` as it is. Raises ValueError where its kind is not accepted, or it holds a password: recipes are published."""
    scheme, rest = scheme_of(url), url.partition("://")[2] if "://" in url else url
    if scheme not in (*SCHEMES, "file") or not rest.strip(" /"):
        raise ValueError(f"{url!r}; accepted: {ACCEPTED}")
    if PASSWORD.match(rest):
        raise ValueError(
            f"a {scheme} URL with a password in it, and recipes are published; accepted: {scheme}://BUCKET/PREFIX, with "
            "credentials where the store's own tools look for them (environment, profile, role)"
        )
    return url


StoreUrl = Annotated[str, AfterValidator(check_url)]

"""`python -m service.ray_serve ARTIFACT`: serve with replicas and shards, on this machine or on a cluster of Ray."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from index.command_line.border import FAILED, NOT_ALLOWED, BorderedCommand, say

if TYPE_CHECKING:
    from service.ray_serve.application import Layout
    from service.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
STORE_BYTES = 100 * 1024 * 1024
"""Of Ray's object store on one machine. Batches and answers are far smaller; the default is a third of the memory."""
TOKEN = Path.home() / ".ray" / "auth_token"
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray's processes listen on 127.0.0.1, which is its default on other systems. Else, anybody who reaches this
machine could make them run code."""


@app.command(cls=BorderedCommand)
def serve(
    artifact: Annotated[Path, typer.Argument(help="Dense artifact folder, at the same path on every machine.")],
    address: Annotated[
        str,
        typer.Option(help="Cluster, HOST:PORT or auto, that serves on when this command has ended; empty: a new one."),
    ] = "",
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    encoders: Annotated[int, typer.Option(min=1, max=1000, help="Replicas that encode, at least.")] = 2,
    most_encoders: Annotated[
        int, typer.Option(min=0, max=1000, help="Replicas that encode, at most; 0: as many as at least.")
    ] = 0,
    positions: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Positions waiting and under way that one encoder is for.")
    ] = 1280,
    grow_after: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds for which more must be needed until more are started.")
    ] = 30.0,
    shrink_after: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds for which fewer must be enough until some end.")
    ] = 600.0,
    shards: Annotated[int, typer.Option(min=1, max=1000, help="Parts of the index.")] = 4,
    copies: Annotated[int, typer.Option(min=1, max=100, help="Replicas of each part.")] = 2,
    ingresses: Annotated[int, typer.Option(min=1, max=100, help="Replicas that take requests.")] = 1,
) -> None:
    """Serve POST /recommend on Ray Serve. Settings are the variables ANYO_… of the service.

    With --address, an artifact takes the place of the one that the cluster serves.
    """
    if most_encoders and most_encoders < encoders:
        _stop(f"--most-encoders ({most_encoders}) is below --encoders ({encoders})", NOT_ALLOWED)
    settings = _settings(artifact, host, port, ingresses)
    from service.engine.cpu import set_library_defaults

    set_library_defaults()  # every replica on this machine inherits them
    _prepare_ray(address)
    try:
        import ray
    except ImportError:
        _stop("Ray is not installed; install the extra ray: pip install -e '.[cpu,ray]'", NOT_ALLOWED)
    from service.ray_serve.application import Layout

    layout = Layout(
        ingresses, encoders, most_encoders or encoders, positions, shards, copies, settings.threads or 1,
        gpus=0 if settings.device == "cpu" else 1, grow_s=grow_after, shrink_s=shrink_after,
    )  # fmt: skip
    local = {
        "num_cpus": layout.cores,  # Ray's count, not the machine's: replicas share the cores that are there
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
    }
    try:
        ray.init(address or "local", log_to_driver=False, **({} if address else local))
    except ConnectionError as error:
        _stop(f"no cluster of Ray answers at {address}: {error}", FAILED)
    try:
        _deploy(layout, artifact, settings)
        if not address:
            here = ray.get_runtime_context().gcs_address
            print(f"[serve] another artifact: python -m service.ray_serve ARTIFACT --address {here}", flush=True)
        while not address:
            time.sleep(1)
    finally:
        ray.shutdown()


def _prepare_ray(address: str | None) -> None:
    """Set the variables that Ray reads when it is imported."""
    from service.settings.addresses import is_loopback

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address or is_loopback(address.rpartition(":")[0]):
        os.environ[LOOPBACK] = "0"
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default replicas yield to every other program
    if address and TOKEN.exists():
        # A cluster that the command starts asks for this token; Ray presents it only where it is told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _settings(artifact: Path, host: str | None, port: int | None, ingresses: int) -> Settings:
    from service.settings import SettingsError, load_settings
    from service.settings.addresses import is_loopback

    if not (artifact / "manifest.json").is_file():
        _stop(f"{artifact} is no artifact folder: it holds no manifest.json", NOT_ALLOWED)
    try:
        settings = load_settings(artifacts=(artifact,), host=host, port=port)
    except SettingsError as error:
        _stop(str(error), NOT_ALLOWED)
    if settings.reuse_mib:
        _stop("ANYO_REUSE_MIB keeps states of histories in one process; it cannot be used on Ray Serve", NOT_ALLOWED)
    if settings.qdrant_url:
        _stop("ANYO_QDRANT_URL is set; on Ray Serve shards find the items: unset it", NOT_ALLOWED)
    if settings.port == 0:
        _stop("ANYO_PORT is 0; Ray Serve needs the number of a port", NOT_ALLOWED)
    if ingresses > 1 and any(url.startswith("sqlite") for url in (settings.store, settings.item_store)):
        _stop(
            "several ingresses share histories and changed items through Redis: set ANYO_STORE, and ANYO_ITEM_STORE "
            "where items change, to redis://…",
            NOT_ALLOWED,
        )
    if not settings.api_keys and not is_loopback(settings.host):
        say("warning: other machines can reach this port and no API key is asked for; set ANYO_API_KEYS")
    return settings


def _deploy(layout: Layout, artifact: Path, settings: Settings) -> None:
    from ray import serve as ray_serve

    from modeling.artifact.folders import ArtifactError
    from service.ray_serve.application import deploy
    from service.ray_serve.remote import DeployError

    ray_serve.start(http_options={"host": settings.host, "port": settings.port}, proxy_location="EveryNode")
    try:
        version = deploy(layout, artifact)
    except (ArtifactError, DeployError) as error:
        _stop(str(error), FAILED)
    print(f"[serve] ready: {artifact.name}, version {version}, on http://{settings.host}:{settings.port}", flush=True)


def _stop(message: str, code: int) -> NoReturn:
    say(f"error: {message}")
    raise typer.Exit(code)


if __name__ == "__main__":
    sys.exit(app(prog_name="python -m service.ray_serve"))

"""``nashtune slurm``, ``nashtune kuberay`` and ``nashtune skypilot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nashtune.commands.told import told

Recipe = Annotated[Path, typer.Argument(help="A recipe file, or a run folder to go on with.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace, as train.batch_size=32.")
]
Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
Gpus = Annotated[int, typer.Option(min=0, help="GPUs of each machine; 0: CPUs only.")]
Env = Annotated[
    list[str] | None,
    typer.Option(
        help="A variable of the run: NAME=VALUE, or NAME for one whose value the file must not hold; repeatable."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of what is written.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (slurm, kuberay, skypilot):
        app.command()(told()(command))


def slurm(
    recipe: Recipe,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    gpus_per_node: Gpus = 0,
    time: Annotated[str | None, typer.Option(help="Time limit of one start, as 24:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(min=1, help="Cores of each machine.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of each machine, as 512G; 0 takes all.")] = None,
    warning: Annotated[
        int, typer.Option(min=30, max=65535, help="Stop and requeue so many seconds before the limit.")
    ] = 180,
    env: Env = None,
    setup: Annotated[list[str] | None, typer.Option(help="A line of shell before the run; repeatable.")] = None,
    container: Annotated[str, typer.Option(help='Words before every command, as "apptainer exec --nv IMAGE".')] = "",
    out: Out = Path("slurm"),
) -> None:
    """Write a batch script that runs a recipe on machines of a Slurm cluster, and goes on after preemption or time limit."""
    from nashtune.launching.place import Place
    from nashtune.launching.slurm import SlurmOptions, slurm_script
    from nashtune.run import recipe_file
    from nashtune.store.files import write_atomic

    place = Place.of(recipe_file(recipe), overrides or [], nodes, gpus_per_node, env or [], "slurm")
    options = SlurmOptions(time, partition, account, cpus_per_node, memory, warning, container, tuple(setup or ()))
    script = out / f"{place.recipe.name}.sbatch"
    text = slurm_script(place, options, script)
    (out / "logs").mkdir(parents=True, exist_ok=True)  # sbatch does not make it
    write_atomic(script, text)
    script.chmod(0o755)
    print(f"wrote {script}\nnext:  sbatch {script}")


def kuberay(
    recipe: Recipe,
    image: Annotated[str, typer.Option(help="Container image with nashtune[ray] and Ray.")],
    volume: Annotated[str, typer.Option(help="Persistent volume claim (ReadWriteMany) of the run folder.")],
    ray_version: Annotated[str, typer.Option(help="Ray version of the image, as 2.52.0.")],
    overrides: Overrides = None,
    nodes: Nodes = 1,
    gpus_per_node: Gpus = 0,
    cpus_per_node: Annotated[int, typer.Option(min=1, help="Cores of each machine.")] = 8,
    memory: Annotated[str, typer.Option(help="Memory of each machine, as 64Gi.")] = "64Gi",
    env: Env = None,
    out: Out = Path("kuberay"),
) -> None:
    """Write a KubeRay RayJob (with the recipe as a ConfigMap) that runs a recipe in Kubernetes."""
    from nashtune.launching.kuberay import rayjob
    from nashtune.launching.place import Place
    from nashtune.run import recipe_file
    from nashtune.store.files import write_atomic

    place = Place.of(recipe_file(recipe), overrides or [], nodes, gpus_per_node, env or [], "ray")
    file = out / f"{place.recipe.name}.yaml"
    text = rayjob(
        place, image=image, volume=volume, ray_version=ray_version, cpus=cpus_per_node, memory=memory, file=file.name
    )
    write_atomic(file, text)
    print(f"wrote {file}\nnext:  kubectl apply -f {file}")


def skypilot(
    recipe: Recipe,
    volume: Annotated[str, typer.Option(help="SkyPilot volume of the run folder.")],
    overrides: Overrides = None,
    nodes: Nodes = 1,
    gpus_per_node: Gpus = 0,
    gpu: Annotated[str | None, typer.Option(help="SkyPilot's name of the GPU, as H100.")] = None,
    infra: Annotated[
        str | None, typer.Option(help="Where, as k8s or aws/us-east-1; the cheapest if not given.")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Machines that may be taken away.")] = False,
    cpus_per_node: Annotated[int | None, typer.Option(min=1, help="Cores of each machine, at least.")] = None,
    env: Env = None,
    setup: Annotated[list[str] | None, typer.Option(help="A line of shell that installs nashtune; repeatable.")] = None,
    out: Out = Path("skypilot"),
) -> None:
    """Write a SkyPilot task that runs a recipe on machines of a cloud. Use it from the folder it was written in."""
    from nashtune.errors import RecipeError
    from nashtune.launching.place import Place
    from nashtune.launching.skypilot import skypilot_task
    from nashtune.run import recipe_file
    from nashtune.store.files import write_atomic

    if (gpu is None) != (gpus_per_node == 0):
        raise RecipeError(f"--gpu is {gpu} and --gpus-per-node {gpus_per_node}; accepted: both, or none for CPUs only")
    place = Place.of(
        recipe_file(recipe), overrides or [], nodes, gpus_per_node, env or [], "ray" if nodes > 1 else "local"
    )
    file = out / f"{place.recipe.name}.yaml"
    lines = tuple(setup or ("pip install 'nashtune[ray]'",))
    text = skypilot_task(
        place, gpu=gpu, volume=volume, infra=infra, spot=spot, cpus=cpus_per_node, setup=lines, file=str(file)
    )
    write_atomic(file, text)
    print(f"wrote {file}\nnext:  sky jobs launch {file}")

# SPDX-License-Identifier: Apache-2.0
"""dosemap-import: makes a dosemap weights file of a PyTorch or ONNX network, and proves it."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import textwrap
from importlib import metadata
from pathlib import Path

from dosemap_tools import __version__, weights_file
from dosemap_tools.importing import card, proof
from dosemap_tools.importing.network import Json, Network, NetworkImportError
from dosemap_tools.importing.ports import PORT_FORM, STEP_FORM, UsageError
from dosemap_tools.importing.sources import Source, StateSource, open_source
from dosemap_tools.stopping import clean_stop, say

DONE, FAILED, USAGE = 0, 1, 2
_SUFFIXES = (".safetensors.zst", ".safetensors")
_TORCH_FILES = ".pt2, .pt, .pth and .ckpt"
_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "safetensors")
_EXAMPLE = """\
example:
  dosemap import net.onnx -o net.safetensors.zst --input pet:suv --output dose:dose_per_activity \\
      --spatial-axes xyz --orientation RAS --voxel-size pet --name net --version 1 \\
      --summary 'dose from PET' --licence CC-BY-4.0 --trained yes --training @training.txt

'dosemap import FILE' alone says what is in the file and what has to be stated. Nothing in a file is
executed; --network package.module:Class imports that Python module, which runs its code.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dosemap-import",
        usage="dosemap-import SOURCE -o FILE [options]",
        description="Make a dosemap weights file of a network trained in PyTorch or stored as ONNX,"
        " and prove that it computes the same.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help=".onnx, .pt2, .pt, .pth, .ckpt, .safetensors")
    add("-o", "--out", metavar="FILE", type=Path, help="NAME.safetensors.zst (or .safetensors)")
    group = parser.add_argument_group("of a state dict")
    add = group.add_argument
    add("--network", metavar="NAME", help="one of models/, or package.module:Class(arguments)")
    add("--key", metavar="KEY", help="where in a checkpoint the state dict is")
    add("--prefix", metavar="TEXT", help="what its names begin with, to be left out")
    _add_statement(parser)
    _add_card(parser)
    _add_proof(parser)
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--dtype", choices=("F32", "F16", "BF16"), default="F32", help="of the weights in the file")
    add("--json", action="store_true", help="print the result as JSON")
    add("--quiet", action="store_true", help="print errors only")
    return parser


def _add_statement(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what inputs and outputs mean, in the order of the channels")
    add = group.add_argument
    form = PORT_FORM
    add("--input", metavar=form, action="append", default=[], help="uptake, suv, hu or other")
    add("--output", metavar=form, action="append", default=[], help="dose_per_activity or other")
    add("--quantity", metavar="QUANTITY", help="of the only input: short for --input")
    add("--unit", metavar="UNIT", help="of --quantity; a known one is converted")
    steps = f"[PORT:] and steps of {STEP_FORM}"
    add("--input-intensity", metavar="STEPS", action="append", default=[], help=steps)
    add("--output-intensity", metavar="STEPS", action="append", default=[], help="likewise")
    group = parser.add_argument_group("the images that it was trained on")
    add = group.add_argument
    add("--spatial-axes", choices=card.AXES, help="order of its tensors' spatial axes")
    add("--orientation", metavar="CODE", help="where x, y, z point: RAS, LPS, ..., or stored")
    add("--patch", metavar="X,Y,Z", help="voxels of a patch; known from files of one fixed size")
    add("--voxel-size", metavar="X,Y,Z|pet", help="mm; pet: it runs on each PET's own grid")


def _add_card(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model card; TEXT may be @FILE")
    add = group.add_argument
    add("--card", metavar="FILE", type=Path, help="JSON with any of all this; options win")
    add("--name", metavar="TEXT", help="what the program calls the model")
    add("--version", metavar="TEXT", help="of the weights")
    add("--summary", metavar="TEXT", help="what it computes from what, and what for")
    add("--licence", "--license", metavar="TEXT", help="on what terms the weights may be used")
    add("--trained", choices=("yes", "no"), help="no: constructed or random weights")
    add("--training", metavar="TEXT", help="data, method and results of the training")
    add("--references", metavar="TEXT", action="append", default=[], help="may be given again")
    add("--limitations", metavar="TEXT", action="append", default=[], help="may be given again")
    add("--skip-air", metavar="NUMBER|off", help="windows whose maximum is below are not run")


def _add_proof(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the proof")
    add = group.add_argument
    tolerance = f"relative L2 that is allowed, default {proof.TOLERANCE:.0e}"
    add("--tolerance", metavar="NUMBER", type=float, default=proof.TOLERANCE, help=tolerance)
    add("--seed", metavar="N", type=int, default=0, help="of the random patches, default 0")
    files = "a real patch: .npy or NIfTI, in the input's quantity; once for each input"
    add("--patch-file", metavar="[PORT=]FILE", action="append", default=[], help=files)
    add("--dosemap", metavar="PROGRAM", help="default $DOSEMAP_BIN, the one installed, or on PATH")


# Asking -------------------------------------------------------------------------------------------
def _ask(source: Source, stated: card.Stated, options: argparse.Namespace) -> None:
    """Raise an error that lists everything that is missing, and what the file says."""
    missing = card.missing(stated, source.inputs, source.outputs)
    if isinstance(source, StateSource) and not options.network:
        missing.insert(0, ("--network NAME", source.networks()))
    if options.out is None:
        missing.insert(0, ("-o FILE", "the weights file, NAME.safetensors.zst"))
    if not missing:
        return
    lines = [f"{source.path}: {source.kind}", *(f"  {line}" for line in source.lines())]
    lines += ["it does not say, and has to be told (also by --card FILE.json):"]
    for option, values in missing:
        lines.append(f"  {option}")
        lines += textwrap.wrap(values, 92, initial_indent=" " * 8, subsequent_indent=" " * 8)
    raise UsageError("\n".join(lines))


def _check_out(out: Path, source: Path) -> None:
    if not out.name.endswith(_SUFFIXES) or out.name in _SUFFIXES:
        raise UsageError(f"-o is {str(out)!r}", remedy=f"its name has to end in {_SUFFIXES[0]}")
    if out.exists() and (not out.is_file() or out.samefile(source)):
        what = "the source itself" if out.is_file() else "no ordinary file"
        raise UsageError(f"-o is {what}", where=str(out), remedy="choose another name")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise NetworkImportError(
            "the folder is not there or cannot be written to", where=str(out.parent)
        )


# The import ---------------------------------------------------------------------------------------
def _versions() -> Json:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _provenance(options: argparse.Namespace, source: Source, checksum: str) -> Json:
    chosen = {"network": options.network, "key": options.key, "prefix": options.prefix}
    return {
        "made_by": f"dosemap_tools.importing {__version__}",
        "source": {"file": source.path.name, "kind": source.kind, "xxh64": checksum},
        "options": {key: value for key, value in chosen.items() if value},
        "dtype": options.dtype,
        "versions": _versions(),
    }


class _Work:
    """One import: the weights file comes into being in a folder beside the place for it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.exact = folder / "exact.safetensors.zst"
        self.made = folder / options.out.name

    def write(self, network: Network, stated: card.Stated, provenance: Json) -> None:
        """Write the network in float32, and as it is wanted where that is something else."""
        own_card = card.card_of(stated)
        content = (network.graph, own_card, provenance, network.tensors)
        weights_file.write(self.exact, *content, "F32")
        if self.options.dtype != "F32":
            weights_file.write(self.made, *content, self.options.dtype)

    def prove(self, program: str, shown: proof.Proof, network: Network) -> None:
        """Compare what was written with the original; raises where it is something else."""
        shown.deviations = shown.measure(program, self.exact, network.outputs)
        proof.check(shown.deviations, self.options.tolerance)
        if self.options.dtype != "F32":
            shown.rounding = shown.measure(program, self.made, network.outputs)
            proof.check(shown.rounding, proof.ROUNDING[self.options.dtype])

    def publish(self, own_card: Json, provenance: Json) -> None:
        """Put the proof into the card of what was proven, and the file in its place."""
        proven = self.made if self.options.dtype != "F32" else self.exact
        weights_file.rewrite(proven, self.made, own_card, provenance)
        os.replace(self.made, self.options.out)


def _unfit_for_predict(network: Network) -> str:
    """Return why `dosemap predict` will not run a network; empty where it will."""
    inputs, outputs = network.graph["inputs"], network.graph["outputs"]
    pets = [port for port in inputs if port["quantity"] in ("uptake", "suv")]
    cts = [port for port in inputs if port["quantity"] == "hu"]
    doses = [port["name"] for port in outputs if port["quantity"] == "dose_per_activity"]
    if len(pets) != 1 or len(cts) > 1 or len(pets) + len(cts) < len(inputs):
        return "it wants one PET (uptake or suv) and at most one CT (hu)"
    if any(port["channels"] != 1 for port in (*pets, *cts)):
        return "it wants one channel of each image"
    if len(doses) != 1:
        return f"it wants one output of dose_per_activity, and there are {len(doses)}"
    (tensor,) = (t for t in network.outputs if doses[0] in t.ports)
    if tensor.channels[tensor.ports.index(doses[0])] != 1:
        return "it wants one channel of dose"
    if tensor.shape[1:] != network.inputs[0].shape[1:]:
        return "it wants a dose for each voxel"
    return ""


def _run(options: argparse.Namespace) -> Json:
    stated = card.stated_by(options)
    if not (0 < options.tolerance < 1 and options.seed >= 0):
        raise UsageError("--tolerance is a number above 0 and below 1, --seed is not negative")
    if options.out is not None and options.source.exists():
        _check_out(options.out, options.source)
    source = open_source(options.source, options.network, options.key, options.prefix)
    _ask(source, stated, options)
    program = proof.find_program(options.dosemap)
    checksum = weights_file.file_checksum(options.source)
    statement, network, notes = source.network(stated)
    notes += network.notes + card.unknown_keys(stated)
    if reason := _unfit_for_predict(network):
        notes.append(f"`dosemap predict` will refuse it: {reason}; `dosemap forward` runs it")
    shown = proof.Proof(statement, options.seed, options.patch_file, options.tolerance)
    provenance = _provenance(options, source, checksum)
    with tempfile.TemporaryDirectory(prefix=f".{options.out.name}.", dir=options.out.parent) as at:
        work = _Work(options, Path(at))
        work.write(network, stated, provenance)
        # Models refer to themselves in circles. Each is freed before the next takes its memory.
        network.tensors = {}
        gc.collect()
        shown.run_original(source.original(), network.inputs)
        gc.collect()
        work.prove(program, shown, network)
        imported = {"source": provenance["source"], "notes": notes}
        imported["proof"] = shown.json(options.dtype)
        work.publish({**card.card_of(stated), "import": imported}, provenance)
    return {
        "out": str(options.out),
        "bytes": options.out.stat().st_size,
        "xxh64": weights_file.file_checksum(options.out),
        "graph": {key: value for key, value in network.graph.items() if key != "nodes"},
        "nodes": len(network.graph["nodes"]),
        **imported,
    }


def _report(result: Json) -> list[str]:
    """Return the lines that say what was imported, how it was proven and where it is."""
    graph, shown = result["graph"], result["proof"]
    lines = [f"{result['source']['file']}: {result['source']['kind']}"]
    for kind in ("inputs", "outputs"):
        for port in graph[kind]:
            steps = " ".join(json.dumps(step) for step in port["intensity"]) or "none"
            lines.append(
                f"  {kind[:-1]:8}{port['name']}: {port['channels']} x {port['quantity']}"
                f" in {port['unit'] or 'no unit'}; intensity: {steps}"
            )
    size = graph["voxel_size_mm"]
    voxels = "each PET's own voxels" if size is None else f"voxels of {size} mm"
    patch = " x ".join(map(str, graph["patch_size"]))
    lines.append(
        f"  patch   {patch} (x, y, z), {voxels}; axes {graph['spatial_axes']},"
        f" orientation {graph['orientation']}"
    )
    lines += [f"  note    {note}" for note in result["notes"]]
    lines.append(f"proof: {shown['original']} against {shown['compared_with']}")
    lines += [f"  {_deviation(row)}" for row in shown["deviations"]]
    if "rounding" in shown:
        lines.append(f"with weights in {shown['rounded_to']}:")
        lines += [f"  {_deviation(row)}" for row in shown["rounding"]]
    return [*lines, f"written: {result['out']} ({result['bytes'] / 1e6:.1f} MB)"]


def _deviation(row: Json) -> str:
    return (
        f"{row['output']:12} {row['patch']:10} relative L2 {row['relative_l2']:.2e},"
        f" maximum {row['maximum']:.2e} where values reach {row['original_maximum']:.4g}"
    )


def _fail(message: object, status: int) -> int:
    print(f"dosemap-import: {message}", file=sys.stderr)
    return status


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed, 2 wrong use."""
    options = _parser().parse_args(arguments)
    try:
        with clean_stop():
            result = _run(options)
    except UsageError as error:
        return _fail(f"{error}\nTry 'dosemap-import --help'.", USAGE)
    except (NetworkImportError, weights_file.WeightsFileError) as error:
        return _fail(error, FAILED)
    except ImportError as error:
        wanted = f"pip install 'dosemap[import]', or 'dosemap[import,torch]' for {_TORCH_FILES}"
        return _fail(f"{error}; what an import needs: {wanted}", FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", FAILED)
    except MemoryError:
        return _fail(f"{options.source}: the memory does not suffice for it", FAILED)
    except Exception as error:  # of the frameworks: a file that they fail on is no reason to crash
        if os.environ.get("DOSEMAP_TRACEBACK"):
            raise
        text = f"{options.source}: cannot be imported: {type(error).__name__}: {error}"
        return _fail(f"{text}\n$DOSEMAP_TRACEBACK=1 shows where.", FAILED)
    if options.json:
        say(json.dumps(result, indent=2))
    elif not options.quiet:
        say("\n".join(_report(result)))
    return DONE


if __name__ == "__main__":
    sys.exit(main())

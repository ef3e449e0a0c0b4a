# SPDX-License-Identifier: Apache-2.0
"""What of a torch.export program's JSON may be read by torch.export.load.

Everything is checked and written anew: operators of an allow-list, numbers, names that may stand in
source code, and symbolic sizes of plain arithmetic. Guards, custom objects, subgraphs, metadata for
other tools and the structure of nested inputs and outputs are left out or refused.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from typing import Any

from dosemap_tools.importing.network import Json
from dosemap_tools.importing.torch_network import source_line

_MAX_NODES = 100_000
_MAX_ELEMENTS = 1 << 31  # of one tensor
AGAIN = "export it again with torch.export.save of a current PyTorch, or to ONNX"
_EVAL = "call model.eval() before torch.export.export"
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_PATH = re.compile(r"[A-Za-z0-9_.\- ]{1,255}")  # of a parameter: goes into source code, too
_SYMBOL = re.compile(r"s\d{1,9}")
_ATEN = re.compile(r"torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")

# torch/_export/serde/schema.py: ScalarType. Half and double precision become float32.
FLOAT, STRIDED, CPU = 7, 7, {"type": "cpu", "index": None}
SCALAR_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}  # and their bytes
SCALAR_NAMES = dict(
    zip(
        SCALAR_TYPES,
        [
            "uint8",
            "int8",
            "int16",
            "int32",
            "int64",
            "float16",
            "float32",
            "float64",
            "bool",
            "bfloat16",
        ],
        strict=True,
    )
)
TO_FLOAT = frozenset((6, 8, 13))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators without their overload, and without the _ of those that work in place: arithmetic on
# dense tensors. What reads files or calls back is not among them.
_ATEN_NAMES = _words(
    """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    instance_norm group_norm
    native_group_norm layer_norm native_layer_norm rms_norm local_response_norm normalize
    relu relu6 leaky_relu prelu _prelu_kernel elu selu celu gelu silu mish hardswish hardsigmoid
    hardtanh clamp clamp_min clamp_max clip sigmoid log_sigmoid tanh softplus softsign softmax
    _softmax log_softmax _log_softmax softmin hardshrink softshrink tanhshrink threshold glu rrelu
    erf exp exp2 expm1 log log1p log2 log10 sqrt rsqrt pow square reciprocal abs neg sign floor ceil
    round trunc sin cos tan asin acos atan sinh cosh add sub rsub mul div multiply divide subtract
    true_divide addcmul addcdiv lerp maximum minimum fmod remainder floor_divide
    mean sum var std var_mean std_mean amax amin max min argmax argmin prod norm cumsum logsumexp
    linalg_vector_norm matmul mm bmm addmm baddbmm dot mv einsum scaled_dot_product_attention
    avg_pool2d avg_pool3d max_pool2d max_pool3d max_pool3d_with_indices adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d
    upsample_nearest2d upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d
    upsample_bilinear2d upsample_bicubic2d grid_sampler_3d pixel_shuffle pixel_unshuffle
    pad constant_pad_nd reflection_pad3d replication_pad3d _pad_circular cat concat concatenate
    stack hstack vstack split split_with_sizes chunk slice select narrow index index_select gather
    unbind unsqueeze squeeze view _unsafe_view view_as reshape reshape_as flatten unflatten permute
    transpose swapaxes t movedim contiguous clone detach alias expand expand_as broadcast_to repeat
    repeat_interleave tile flip roll to _to_copy type_as float dropout feature_dropout alpha_dropout
    feature_alpha_dropout native_dropout lift_fresh lift_fresh_copy zeros ones full arange linspace
    scalar_tensor zeros_like ones_like full_like new_zeros new_ones new_full empty empty_like where
    masked_fill tril triu eye eq ne lt le gt ge logical_and logical_or logical_not logical_xor
    isnan isfinite isinf nan_to_num copy fill zero sym_size sym_stride sym_numel sym_storage_offset
    _assert_tensor_metadata _assert_scalar sym_constrain_range sym_constrain_range_for_size
    meshgrid outer im2col col2im cross cdist channel_shuffle native_channel_shuffle unfold
    _unsafe_index index_put slice_scatter select_scatter max_unpool3d logit erfc frac sgn
    """
)
_SYMBOLIC = _words(
    "_operator.add _operator.sub _operator.mul _operator.floordiv _operator.truediv _operator.mod "
    "_operator.neg _operator.eq _operator.ne _operator.lt _operator.le _operator.gt _operator.ge "
    "_operator.and_ _operator.or_ math.trunc torch.sym_max torch.sym_min torch.sym_float "
    "torch.sym_int torch.sym_not torch.sym_ite"
)

# The form of symbolic sizes, as sympy writes them: calls of these, integers and symbols.
_FUNCTIONS = _words(
    "Symbol Integer Rational Add Mul Max Min Mod FloorDiv CeilDiv PythonMod ModularIndexing "
    "Eq Equality Ne Unequality Lt Le Gt Ge StrictLessThan LessThan StrictGreaterThan GreaterThan "
    "And Or Not CeilToInt FloorToInt TruncToInt RoundToInt IntTrueDiv FloatTrueDiv ToFloat "
    "Identity CleanDiv"
)
_ASSUMPTIONS = _words(
    "positive integer nonnegative nonzero finite real extended_real zero negative"
)


class RefusalError(Exception):
    """What is wrong, and what to do about it."""

    def __init__(self, what: str, remedy: str = AGAIN) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def need(condition: object, what: str, remedy: str = AGAIN) -> None:
    """Refuse the program unless a condition holds."""
    if not condition:
        raise RefusalError(what, remedy)


def short(value: object) -> str:
    """Return a value of the file as it may stand in a message."""
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


def expression(text: object) -> str:
    """Return a symbolic size as it may be evaluated; anything but arithmetic is refused."""
    what = f"the symbolic size {short(text)} is not plain arithmetic"
    need(isinstance(text, str) and len(text) <= 2000, what)
    try:
        tree = ast.parse(str(text), mode="eval")
        return ast.unparse(_arithmetic(tree.body, what))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusalError(what) from error


def _arithmetic(node: ast.expr, what: str) -> ast.expr:
    """Return the node if it and everything in it is arithmetic."""
    match node:
        case ast.Constant(value=int() | float() as value) if abs(value) < 2**63:
            return node
        case ast.Name(id=name) if _SYMBOL.fullmatch(name) or name in ("true", "false"):
            return node
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)]):
            known = all(
                k.arg in _ASSUMPTIONS
                and isinstance(k.value, ast.Constant)
                and isinstance(k.value.value, bool)
                for k in node.keywords
            )
            need(known and _SYMBOL.fullmatch(name), what)
            return node
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            need(name != "Symbol", what)
            node.args = [_arithmetic(argument, what) for argument in arguments]
            return node
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv()):
            _arithmetic(left, what)
            _arithmetic(node.right, what)
            return node
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _arithmetic(operand, what)
            return node
    raise RefusalError(what)


def _name(value: object) -> str:
    need(isinstance(value, str) and _WORD.fullmatch(value), f"{short(value)} is no name")
    return str(value)


def integer(value: object) -> int:
    """Return an integer of 64 bits."""
    need(type(value) is int and abs(value) < 2**63, f"{short(value)} is no integer")
    return int(value)  # type: ignore[call-overload]


def _bool(value: object) -> bool:
    need(type(value) is bool, f"{short(value)} is neither true nor false")
    return bool(value)


def _float(value: object) -> float | str:
    if value in ("Infinity", "-Infinity", "NaN"):  # as PyTorch writes them
        return str(value)
    need(type(value) in (int, float), f"{short(value)} is no number")
    return float(value)  # type: ignore[arg-type]


def _string(value: object) -> str:
    fits = isinstance(value, str) and len(value) <= 200 and value.isascii() and value.isprintable()
    need(fits, f"{short(value)} is not a short text")
    return str(value)


def record(value: object, *keys: str) -> list[Any]:
    """Return the values of these keys of an object."""
    need(isinstance(value, dict), f"{short(value)} is no object")
    lacking = [key for key in keys if key not in value]  # type: ignore[operator]
    need(not lacking, f"{short(value)} has no {', '.join(lacking)}")
    return [value[key] for key in keys]  # type: ignore[index]


def items(value: object) -> list[Any]:
    """Return the items of a list."""
    need(isinstance(value, list), f"{short(value)} is no list")
    return list(value)  # type: ignore[call-overload]


def _one(value: object) -> tuple[str, Any]:
    """Return key and value of an object with one key: a union of PyTorch's schema."""
    need(isinstance(value, dict) and len(value) == 1, f"{short(value)} is no single choice")
    return next(iter(value.items()))  # type: ignore[attr-defined]


def _list_of(form: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda value: [form(item) for item in items(value)]


def _choice(**forms: Callable[[Any], Any]) -> Callable[[Any], Json]:
    def form(value: object) -> Json:
        key, content = _one(value)
        need(key in forms, f"an argument of the kind {short(key)} is not supported")
        return {key: forms[key](content)}

    return form


def _tensor(value: object) -> Json:
    (name,) = record(value, "name")
    return {"name": _name(name)}


def _ints(value: object) -> list[int]:
    numbers = [integer(item) for item in items(value)]
    product = math.prod(abs(n) for n in numbers if n)
    need(product <= _MAX_ELEMENTS, f"{short(numbers)} claims a tensor of {product} elements")
    return numbers


def scalar_type(value: object) -> int:
    """Return the number of a type that values may have here: float32 instead of other floats."""
    number = integer(value)
    need(number in SCALAR_TYPES, f"values of PyTorch's scalar type {number} are not supported")
    return FLOAT if number in TO_FLOAT else number


def layout_of(value: object) -> int:
    """Refuse tensors that are not dense."""
    need(value == STRIDED, "sparse tensors are not supported", "make them dense (to_dense)")
    return STRIDED


def _expression_or(key: str, form: Callable[[Any], Any]) -> Callable[[Any], Json]:
    def symbolic(value: object) -> Json:
        text, hint = (*record(value, "expr_str"), value.get("hint"))  # type: ignore[attr-defined]
        made: Json = {"expr_str": expression(text), "hint": None}
        if hint is not None:
            made["hint"] = _choice(as_int=integer, as_bool=_bool, as_float=_float)(hint)
        return made

    return _choice(**{"as_expr": symbolic, key: form})


_SYM_INT = _expression_or("as_int", integer)
_SYM_FLOAT = _expression_or("as_float", _float)
_SYM_BOOL = _expression_or("as_bool", _bool)
_INT_ARGUMENT = _choice(as_name=_name, as_int=integer)
_FLOAT_ARGUMENT = _choice(as_name=_name, as_float=_float)
_BOOL_ARGUMENT = _choice(as_name=_name, as_bool=_bool)
_OPTIONAL = _choice(as_tensor=_tensor, as_none=_bool)
_ARGUMENT = _choice(
    as_none=_bool,
    as_tensor=_tensor,
    as_tensors=_list_of(_tensor),
    as_int=integer,
    as_ints=_ints,
    as_float=_float,
    as_floats=_list_of(_float),
    as_bool=_bool,
    as_bools=_list_of(_bool),
    as_string=_string,
    as_sym_int=_INT_ARGUMENT,
    as_sym_ints=_list_of(_INT_ARGUMENT),
    as_sym_float=_FLOAT_ARGUMENT,
    as_sym_floats=_list_of(_FLOAT_ARGUMENT),
    as_sym_bool=_BOOL_ARGUMENT,
    as_scalar_type=scalar_type,
    as_memory_format=integer,
    as_layout=layout_of,
    as_device=lambda _: dict(CPU),  # wherever it was exported, it is run on the CPU here
    as_optional_tensor=_OPTIONAL,
    as_optional_tensors=_list_of(_OPTIONAL),
)


def _tensor_meta(value: object) -> Json:
    dtype, sizes, strides, gradient = record(value, "dtype", "sizes", "strides", "requires_grad")
    layout, offset = record(value, "layout", "storage_offset")
    return {
        "dtype": scalar_type(dtype),
        "sizes": _list_of(_SYM_INT)(sizes),
        "requires_grad": _bool(gradient),
        "device": dict(CPU),
        "strides": _list_of(_SYM_INT)(strides),
        "storage_offset": _SYM_INT(offset),
        "layout": layout_of(layout),
    }


def _target(value: object) -> str:
    text = str(value)
    if text in _SYMBOLIC:
        return text
    match = _ATEN.fullmatch(text)
    if match is not None and match[1].rstrip("_") in _ATEN_NAMES:
        return text
    remedy = "write the network with PyTorch's own operators on dense tensors, and export it again"
    if "higher_order" in text:
        remedy = "export it without torch.cond, torch.no_grad or autocast inside of forward"
    raise RefusalError(f"the operator {short(text)} is not one that an import may contain", remedy)


def _metadata(value: object) -> dict[str, str]:
    """Return what is told about a node, as text that goes into comments and messages only."""
    kept: dict[str, str] = {}
    for key in ("stack_trace", "nn_module_stack"):
        text = value.get(key) if isinstance(value, dict) else None
        if isinstance(text, str) and len(text) <= 100_000:
            kept[key] = "".join(c for c in text if c.isprintable() or c == "\n")
    return kept


def _node(value: object) -> Json:
    target, inputs, outputs, metadata = record(value, "target", "inputs", "outputs", "metadata")
    name = value.get("name")  # type: ignore[attr-defined]
    told = _metadata(metadata)
    try:
        for argument in items(inputs):
            _refuse_training(target, argument)
        return {
            "target": _target(target),
            "inputs": [_named(item) for item in items(inputs)],
            "outputs": _list_of(_ARGUMENT)(outputs),
            "metadata": told,
            "is_hop_single_tensor_return": None,
            "name": None if name is None else _name(name),
        }
    except RefusalError as refusal:
        line = source_line(told.get("stack_trace", ""))
        source = f" (from {line})" if line else ""
        raise RefusalError(
            f"{short(name or target)}: {refusal.what}{source}", refusal.remedy
        ) from None


def _refuse_training(target: object, argument: object) -> None:
    """Refuse dropout and the statistics of a batch; an instance norm taken apart has its own."""
    name, value = record(argument, "name", "arg")
    learns = name in ("train", "training") and value == {"as_bool": True}
    learns = learns and target != "torch.ops.aten._native_batch_norm_legit.no_stats"
    need(not learns, "it was exported as it trains: batch statistics or dropout", _EVAL)


def _named(value: object) -> Json:
    name, argument = record(value, "name", "arg")
    kind = value.get("kind")  # type: ignore[attr-defined]
    made = {"name": "" if name == "" else _name(name), "arg": _ARGUMENT(argument)}
    return made | {"kind": None if kind is None else integer(kind)}


def _values(graph: Json, key: str, form: Callable[[Any], Any]) -> Json:
    found = graph.get(key, {})
    need(isinstance(found, dict), f"{key} is no object")
    return {_name(name): form(value) for name, value in found.items()}


def _inputs(graph: Json, signature: Json) -> tuple[list[Json], list[Json]]:
    """Return the graph's inputs and what they are; arguments fixed at export are left out."""
    (arguments,), (specifications,) = record(graph, "inputs"), record(signature, "input_specs")
    kept, kept_specifications = [], []
    pairs = list(zip(items(arguments), items(specifications), strict=False))
    need(len(arguments) == len(specifications), "its inputs and their description differ")
    for argument, specification in pairs:
        kind, told = _one(specification)
        if kind == "constant_input" or (kind == "user_input" and _is_constant(argument)):
            continue
        need("as_tensor" in argument, f"an input of the kind {short(_one(argument)[0])}")
        kept.append({"as_tensor": _tensor(argument["as_tensor"])})
        kept_specifications.append(_input_specification(kind, told))
    return kept, kept_specifications


def _is_constant(argument: Json) -> bool:
    return _one(argument)[0] in ("as_none", "as_int", "as_float", "as_bool", "as_string")


def _input_specification(kind: str, told: Json) -> Json:
    if kind == "user_input":
        (argument,) = record(told, "arg")
        return {kind: {"arg": {"as_tensor": _tensor(record(argument, "as_tensor")[0])}}}
    keys = {
        "parameter": "parameter_name",
        "buffer": "buffer_name",
        "tensor_constant": "tensor_constant_name",
    }
    need(kind in keys, f"an input of the kind {short(kind)} is not supported")
    argument, path = record(told, "arg", keys[kind])
    made: Json = {"arg": _tensor(argument), keys[kind]: path_of(path)}
    if kind == "buffer":
        made["persistent"] = _bool(told.get("persistent", True))
    return {kind: made}


def path_of(value: object) -> str:
    """Return the name of a weight, which goes into source code."""
    need(isinstance(value, str) and _PATH.fullmatch(value), f"{short(value)} names no weight")
    return str(value)


def _outputs(graph: Json, signature: Json) -> tuple[list[Json], list[Json]]:
    """Return the tensors that the network returns; None and numbers among them are left out."""
    (arguments,), (specifications,) = record(graph, "outputs"), record(signature, "output_specs")
    need(len(items(arguments)) == len(items(specifications)), "its outputs are not described")
    kept = []
    for argument, specification in zip(arguments, specifications, strict=True):
        kind, told = _one(specification)
        changed = told.get("buffer_name") if isinstance(told, dict) else None
        need(kind != "buffer_mutation", f"it changes its own buffer {short(changed)}", _EVAL)
        need(kind == "user_output", f"an output of the kind {short(kind)} is not supported")
        if "as_tensor" in argument:
            kept.append({"as_tensor": _tensor(argument["as_tensor"])})
        else:
            need(_is_constant(argument), f"an output of the kind {short(_one(argument)[0])}")
    need(kept, "it returns no tensor")
    return kept, [{"user_output": {"arg": argument}} for argument in kept]


def _tree(kind: str, children: list[Json]) -> Json:
    context = "[]" if kind == "builtins.dict" else "null"
    return {"type": kind, "context": context, "children_spec": children}


def _call(inputs: int, outputs: int) -> list[Json]:
    """Return how the program is called: tensors in, a tensor or a tuple of tensors out."""
    leaf: Json = {"type": None, "context": None, "children_spec": []}
    arguments = _tree("builtins.tuple", [leaf] * inputs)
    call = _tree("builtins.tuple", [arguments, _tree("builtins.dict", [])])
    result = leaf if outputs == 1 else _tree("builtins.tuple", [leaf] * outputs)
    signature: Json = {"inputs": [], "outputs": [], "forward_arg_names": None}
    signature |= {"in_spec": json.dumps([1, call]), "out_spec": json.dumps([1, result])}
    return [{"fqn": "", "signature": signature}]


def _ranges(value: object) -> Json:
    need(isinstance(value, dict), "its range constraints are no object")
    made: Json = {}
    for name, limits in value.items():  # type: ignore[attr-defined]
        need(_SYMBOL.fullmatch(name), f"the symbol {short(name)} is not a size")
        low, high = record(limits, "min_val", "max_val")
        made[name] = {
            "min_val": None if low is None else integer(low),
            "max_val": None if high is None else integer(high),
        }
    return made


def _version(program: Json) -> None:
    """Refuse what another version of PyTorch's format has written."""
    from torch._export.serde.schema import SCHEMA_VERSION

    (version,) = record(program, "schema_version")
    found = tuple(integer(n) for n in record(version, "major", "minor"))
    if found[0] != SCHEMA_VERSION[0]:
        writer = short(program.get("torch_version", "unknown"))
        raise RefusalError(
            f"its format has version {found[0]}.{found[1]} (PyTorch {writer}); the PyTorch that is "
            f"installed reads {SCHEMA_VERSION[0]}",
            "export it again with the PyTorch that is installed here, or to ONNX",
        )


def rewritten(program: object) -> Json:
    """Return what torch.export.load may see of a program: everything in it was checked."""
    (module,) = record(program, "graph_module")
    assert isinstance(program, dict)
    _version(program)
    graph, signature = record(module, "graph", "signature")
    need(isinstance(graph, dict) and isinstance(signature, dict), "its graph is no object")
    need(not graph.get("custom_obj_values"), "it holds objects of custom classes")
    nodes = items(graph.get("nodes"))
    need(len(nodes) <= _MAX_NODES, f"it has {len(nodes)} nodes; at most {_MAX_NODES} are read")
    inputs, input_specifications = _inputs(graph, signature)
    outputs, output_specifications = _outputs(graph, signature)
    users = sum("user_input" in item for item in input_specifications)
    opsets = program.get("opset_version")
    aten = opsets.get("aten") if isinstance(opsets, dict) else None
    return {
        "graph_module": {
            "graph": {
                "inputs": inputs,
                "outputs": outputs,
                "nodes": [_node(node) for node in nodes],
                "tensor_values": _values(graph, "tensor_values", _tensor_meta),
                "sym_int_values": _values(graph, "sym_int_values", _SYM_INT),
                "sym_bool_values": _values(graph, "sym_bool_values", _SYM_BOOL),
                "sym_float_values": _values(graph, "sym_float_values", _SYM_FLOAT),
                "is_single_tensor_return": False,
                "custom_obj_values": {},
            },
            "signature": {
                "input_specs": input_specifications,
                "output_specs": output_specifications,
            },
            "module_call_graph": _call(users, len(outputs)),
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {} if aten is None else {"aten": integer(aten)},
        "range_constraints": _ranges(program.get("range_constraints", {})),
        "schema_version": program["schema_version"],
        "verifiers": ["TRAINING"],
        "torch_version": _string(program.get("torch_version", "unknown")),
        "guards_code": [],
    }

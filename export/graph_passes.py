"""Passes over a traced graph: constants folded, weights as named expressions, readable names.

While the passes run, weights are *inputs* of the graph: nothing can read, fold, merge or
rename them by accident, and no value is needed, so a graph of any size is traced without
its weights. :func:`take_weights` turns what only moves a weight's values about (transposes,
reshapes, cuts) into :class:`Weight` expressions, which are evaluated one at a time when the
weights are written. Arithmetic on weights stays in the graph, so every initializer holds values
of the checkpoint and no others.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

from sana_rt.errors import ExportError

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
#: Names of values that stand for no module.
_NO_SCOPE: Final = "_empty_nn_module_stack_from_metadata_hook"
_RULES: Final = (
    rules.collapse_slice_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.squeeze_reshape_1d_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
)
#: Operators that move values and compute none.
_LAYOUT: Final = (
    "Concat",
    "Gather",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
_WITH_WEIGHT: Final = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Weight:
    """An initializer of the finished graph, as a function of the checkpoint's tensors.

    ``sources`` are keys of the module's state dict; ``expression`` is the ONNX graph that
    computes the initializer from them, or None where it is the tensor itself.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    expression: ReferenceEvaluator | None

    def evaluate(self, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The initializer's value, from the values of ``sources``."""
        if self.expression is None:
            return tensors[self.sources[0]]
        feeds = {name: tensors[name] for name in self.sources}
        (value,) = self.expression.run(None, feeds)
        return np.ascontiguousarray(value)


def weights_to_inputs(model: ir.Model, names: Iterable[str]) -> None:
    """Make the initializers called ``names`` inputs without a value."""
    for name in names:
        value = model.graph.initializers.pop(name, None)
        if value is not None:
            value.const_value = None
            model.graph.inputs.append(value)


def simplify(model: ir.Model) -> None:
    """Fold constants, merge equal nodes, drop nodes without effect.

    Only rules that are exact are applied. The default set of ``onnxscript.optimizer`` is not:
    it takes any constant below 1e-8 for zero and so removes the epsilon of linear attention.
    """
    for each in (
        common.InlinePass(),
        _Fold(),
        RewritePass(_RULES),
        _Fold(),
        _KeepSizes(),
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
    ):
        each(model)


class _Fold(ir.passes.InPlacePass):
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return fold_constants_ir(model, onnx_shape_inference=True)


class _KeepSizes(ir.passes.InPlacePass):
    """Give a Reshape a constant target where at most one of its dimensions has to be inferred.

    A 0 keeps the input's size at that place and -1 stands for the rest, so no Shape node is
    needed to compute them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_keep_sizes(model.graph, node) for node in model.graph]
        return ir.passes.PassResult(model, any(changed))


def _keep_sizes(graph: ir.Graph, node: ir.Node) -> bool:
    if node.op_type != "Reshape" or _constant(node.inputs[1]) is not None:
        return False
    target = _target(node.inputs[0], node.outputs[0])
    if target is None:
        return False
    name = f"{node.outputs[0].name}_shape"
    value = ir.Value(name=name, const_value=ir.tensor(target, name=name))
    graph.register_initializer(value)
    node.replace_input_with(1, value)
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
    return True


def _target(data: ir.Value | None, result: ir.Value) -> NDArray[np.int64] | None:
    if data is None or data.shape is None or result.shape is None:
        return None
    before, target = list(data.shape), []
    for axis, dim in enumerate(result.shape):
        if isinstance(dim, int):
            target.append(dim)
        else:
            target.append(0 if axis < len(before) and before[axis] == dim else -1)
    if target.count(-1) > 1 or 0 in [dim for dim in result.shape if isinstance(dim, int)]:
        return None
    return np.array(target, dtype=np.int64)


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else value.const_value


def take_weights(model: ir.Model, names: Sequence[str]) -> tuple[Weight, ...]:
    """Replace every rearranged weight by an initializer, in order of first use.

    The initializers have no value yet: they are inputs of the graph behind its own ones.
    """
    graph = model.graph
    derived = _derived(graph, set(names))
    needed = [value for value in derived if _used_with_data(value, derived)]
    taken: Counter[str] = Counter()
    weights = tuple(_weight(model, value, derived, taken) for value in needed)
    _cut(model, set(names), needed, weights)
    return weights


def _derived(graph: ir.Graph, names: set[str]) -> dict[ir.Value, ir.Node | None]:
    """Weights, and what is a rearrangement of them, with the node that makes it."""
    derived: dict[ir.Value, ir.Node | None] = {
        value: None for value in graph.inputs if value.name in names
    }
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if (
            node.op_type in _LAYOUT
            and inputs[0] in derived
            and all(each in derived or each.const_value is not None for each in inputs)
        ):
            derived |= dict.fromkeys(node.outputs, node)
    return derived


def _used_with_data(value: ir.Value, derived: Mapping[ir.Value, object]) -> bool:
    return value.is_graph_output() or any(
        node.outputs[0] not in derived for node in value.consumers()
    )


def _weight(
    model: ir.Model,
    value: ir.Value,
    derived: Mapping[ir.Value, ir.Node | None],
    taken: Counter[str],
) -> Weight:
    nodes, leaves = _ancestors(value, derived)
    sources = tuple(str(leaf.name) for leaf in leaves)
    name = sources[0] + (f".{taken[sources[0]]}" if taken[sources[0]] else "")
    taken[sources[0]] += 1
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        raise ExportError(f"The shape of the weight {name} is not fixed: {value.shape}.")
    return Weight(
        name,
        value.dtype,
        tuple(value.shape.numpy()),
        sources,
        _expression(model, value, nodes, leaves) if nodes else None,
    )


def _ancestors(
    value: ir.Value, derived: Mapping[ir.Value, ir.Node | None]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that compute ``value``, in an order that can be run, and the weights they read."""
    nodes: dict[ir.Node, None] = {}
    leaves: dict[ir.Value, None] = {}

    def visit(current: ir.Value) -> None:
        node = derived[current]
        if node is None:
            leaves[current] = None
        elif node not in nodes:
            for each in node.inputs:
                if each is not None and each in derived:
                    visit(each)
            nodes[node] = None

    visit(value)
    return list(nodes), list(leaves)


def _expression(
    model: ir.Model, value: ir.Value, nodes: Sequence[ir.Node], leaves: Sequence[ir.Value]
) -> ReferenceEvaluator:
    cloner: dict[ir.Value, ir.Value] = {}
    inputs = []
    for leaf in leaves:
        cloner[leaf] = ir.Value(name=leaf.name, shape=leaf.shape, type=leaf.type)
        inputs.append(cloner[leaf])
    initializers = []
    copies = []
    for node in nodes:
        for each in node.inputs:
            if each is not None and each not in cloner:
                cloner[each] = ir.Value(name=each.name, const_value=each.const_value)
                initializers.append(cloner[each])
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if each is None else cloner[each] for each in node.inputs],
            node.attributes.values(),
            outputs=[
                ir.Value(name=out.name, shape=out.shape, type=out.type) for out in node.outputs
            ],
        )
        cloner |= dict(zip(node.outputs, copy.outputs, strict=True))
        copies.append(copy)
    graph = ir.Graph(
        inputs,
        [cloner[value]],
        nodes=copies,
        initializers=initializers,
        opset_imports=model.opset_imports,
        name="weight",
    )
    return ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=model.ir_version)))


def _cut(
    model: ir.Model, names: set[str], needed: Sequence[ir.Value], weights: Sequence[Weight]
) -> None:
    """Make ``needed`` the inputs behind the graph's own; drop what computed them."""
    inputs = model.graph.inputs
    kept = [value for value in inputs if value.name not in names]
    for value, weight in zip(needed, weights, strict=True):
        fresh = ir.Value(name=weight.name, shape=value.shape, type=value.type)
        value.replace_all_uses_with(fresh, replace_graph_outputs=True)
        kept.append(fresh)
    inputs.clear()
    inputs.extend(kept)
    common.RemoveUnusedNodesPass()(model)


def name_nodes(graph: ir.Graph, weights: Sequence[Weight]) -> None:
    """Name nodes after the module they come from, and MatMuls and Convs after their weight.

    ``attn1.to_q`` is the MatMul with ``attn1.to_q.weight`` (``attn1.to_q/1`` the second one, if
    there are two); ``attn1/Mul_1`` is the second Mul of ``attn1``. Values are named after the
    node that makes them. Traces of where the graph was made are removed.
    """
    names = {weight.name for weight in weights}
    counts: Counter[str] = Counter()
    for node in graph:
        node.name = _node_name(node, names, counts)
        node.metadata_props.clear()
        node.doc_string = None
        outputs = [value for value in node.outputs if not value.is_graph_output()]
        for index, value in enumerate(outputs):
            value.name = node.name if len(outputs) == 1 else f"{node.name}:{index}"
            value.metadata_props.clear()
    for index, value in enumerate(list(graph.initializers.values())):
        value.name = f"constant_{index}"
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    graph.metadata_props.clear()
    graph.name = "graph"


def _node_name(node: ir.Node, weights: set[str], counts: Counter[str]) -> str:
    operands = [str(value.name) for value in node.inputs[:2] if value is not None]
    own = [name for name in operands if name in weights]
    if node.op_type in _WITH_WEIGHT and own:
        name = own[0].replace(".weight", "", 1)
        counts[name] += 1
        return name if counts[name] == 1 else f"{name}/{counts[name] - 1}"
    scopes = [scope for scope in _scopes(node) if scope not in ("", _NO_SCOPE)]
    name = f"{scopes[-1]}/{node.op_type}" if scopes else node.op_type
    counts[name] += 1
    return f"{name}_{counts[name] - 1}"


def _scopes(node: ir.Node) -> list[str]:
    """The names of the modules around a node, outermost first, as the tracer noted them."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return scopes[:-1]

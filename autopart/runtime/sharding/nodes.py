"""Facts about a graph's nodes: their operations, and the gradients that they may need."""

from torch import fx, nn

from autopart.runtime.models.attributes import lookup


def operation_name(node: fx.Node) -> str:
    """Return the operation's name without namespace and overload, such as `layer_norm`."""
    target = node.target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


def indivisible(subject: str, size: int, degree: int) -> str:
    """Return the sentence that says which degrees would do for a size."""
    able = ", ".join(str(d) for d in range(2, 65) if size % d == 0)
    return f"{subject} {size}, which {degree} does not divide; degrees {able or 'none'} would do"


def kept_by_plan(parameter: str) -> str:
    """Return the sentence on a parameter that the model's plan keeps whole."""
    return f"tp_plan keeps '{parameter}' whole"


def nodes_with_gradient(module: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose tensors may need a gradient."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        value = lookup(module, str(node.target)) if node.op == "get_attr" else node.meta.get("val")
        if node.op == "get_attr":
            is_trained = isinstance(value, nn.Parameter) and value.requires_grad
        else:
            is_float = (
                not _is_number(node)
                if value is None
                else value.is_floating_point() or value.is_complex()
            )
            is_detached = operation_name(node) == "detach"
            is_trained = is_float and not is_detached and not found.isdisjoint(node.all_input_nodes)
        if is_trained:
            found.add(node)
    return found


def _is_number(node: fx.Node) -> bool:
    """Tell whether an operation returns no tensor, but a number such as a size."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not any("Tensor" in str(one.type) for one in schema.returns)


def reads_batch(node: fx.Node) -> bool:
    """Tell whether a node depends on an input of the graph, as positions and other constants do not."""
    seen, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        if one.op == "placeholder":
            return True
        new = [n for n in one.all_input_nodes if n not in seen]
        seen.update(new)
        waiting += new
    return False

"""Options of the compiler for the programs of a run."""

from jax.sharding import AbstractMesh, Mesh

_OPTIONS: dict[str, dict[str, str | bool]] = {
    # By default XLA:CPU hands chains of operations around each matmul and reduction to a library, for which it first
    # writes broadcast operands to memory. With only the matmuls there, a step of BERT (4 layers of 256) takes two
    # thirds of the time.
    'cpu': {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'},
    # By default XLA drops a conversion to bfloat16 and back, and then stores what is between them in float32.
    'gpu': {'xla_allow_excess_precision': False},
}


def compiler_options(mesh: Mesh | AbstractMesh) -> dict[str, str | bool]:
    """Returns the options for programs on a mesh; none for an abstract one, on which nothing is compiled."""
    return _OPTIONS.get(mesh.devices.flat[0].platform, {}) if isinstance(mesh, Mesh) else {}

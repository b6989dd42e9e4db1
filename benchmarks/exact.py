"""Measures the cost of `train.reduction='exact'` compared with 'fast', on simulated devices of this machine.

    python -m benchmarks.exact --devices 1 2 8

The two take turns. Prints the median step time of each, their ratio, and a digest of the parameters after the exact
steps, which must be the same in every line.
"""

import argparse
import hashlib
import os
import statistics
import time

STEPS = 7


def main() -> None:
    """Prints a line per number of devices, split over data; for the largest number also over fsdp."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--devices', type=int, nargs='+', default=[1, 2, 8])
    parser.add_argument('--hidden_size', type=int, default=256)
    parser.add_argument('--num_layers', type=int, default=4)
    arguments = parser.parse_args()
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={max(arguments.devices)}'
    import jax

    from benchmarks.same_curve import Case, start

    model = {'num_layers': arguments.num_layers, 'hidden_size': arguments.hidden_size}
    model |= {'intermediate_size': 4 * arguments.hidden_size}
    meshes = [(num_devices, 'data') for num_devices in arguments.devices]
    for num_devices, kind in meshes + [(max(arguments.devices), 'fsdp')] * (max(arguments.devices) > 1):
        seconds, digest = {'fast': [], 'exact': []}, ''
        running = {name: start(Case(1, num_devices, kind, 1, name), STEPS, **model) for name in seconds}
        for turn in range(STEPS):
            for name, (state, step, batch) in running.items():
                inputs = batch(turn)
                begin = time.perf_counter()
                state, metrics = step(state, inputs)
                jax.block_until_ready((state, metrics))
                seconds[name].append(time.perf_counter() - begin)
                running[name] = state, step, batch
        for leaf in jax.tree.leaves(running['exact'][0].params):
            digest = hashlib.sha256(digest.encode() + jax.device_get(leaf).tobytes()).hexdigest()
        fast, exact = (statistics.median(seconds[name][2:]) for name in ('fast', 'exact'))
        print(
            f'{num_devices} devices over {kind}: fast {fast * 1e3:.0f} ms, exact {exact * 1e3:.0f} ms, '
            f'ratio {exact / fast:.2f}; digest of the parameters {digest[:16]}',
            flush=True,
        )


if __name__ == '__main__':
    main()

"""A forward in one C++ file for Llama-shaped models on a CPU, in float32, built at first use by the system's compiler.

May be touched: `session.NativeSession` and `session.NativeBranching` (through `engine.target`), `weights.NativeWeights`,
`weights.refusal` and `build.library`. What it covers: docs/engines.md.
"""

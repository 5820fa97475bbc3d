//! What hardware every node has: labels, facts of agents and GPUClasses merged into one picture. Pure.

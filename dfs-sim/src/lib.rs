//! dfs-sim

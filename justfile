# Every command of the project; people and CI use the same recipes.

# The long list: what must hold before a change lands.
ci: fmt clippy features test doctest docs bench-test soak-slice demo-test

# Formatting is the formatter's business.
fmt:
    cargo fmt --all --check

# All targets, all features, no warning.
clippy:
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

# The tests (the second command of the README). Doctests are part of it.
test:
    cargo test --workspace --all-features --locked

# The doctests alone, READMEs included.
doctest:
    cargo test --workspace --all-features --locked --doc

# Documentation builds without a warning.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --locked

# Each crate without features and each feature alone.
features:
    cargo check --locked -p nasnet-dbmanager --no-default-features
    cargo check --locked -p nasnet-dbmanager --no-default-features --features fault-injection
    cargo check --locked -p nasnet-state --no-default-features
    cargo check --locked -p nasnet-events --no-default-features
    cargo check --locked -p nasnet-locking --no-default-features
    cargo check --locked -p nasnet-reconcile --no-default-features
    cargo check --locked -p nasnet-reconcile --no-default-features --features routeros
    cargo check --locked -p nasnet-reconcile --no-default-features --features simulator
    cargo check --locked -p nasnet-benches --no-default-features --features soak

# Every criterion bench runs once, unmeasured.
bench-test:
    cargo bench --locked -p nasnet-benches --bench '*' -- --test

# The benches for real.
bench:
    cargo bench --locked -p nasnet-benches

# The table of ratios against peers and floors.
ratios *ARGS:
    cargo run --release --locked -p nasnet-benches --bin ratios -- {{ARGS}}

# Bytes that reach flash per event.
flash-bytes *ARGS:
    cargo run --release --locked -p nasnet-benches --bin flash_bytes -- {{ARGS}}

# A bounded slice of each soak campaign.
soak-slice:
    cargo run --locked -p nasnet-benches --features soak --bin soak -- --campaign kill --budget 10s --seed 1 --floor 5 --json
    cargo run --locked -p nasnet-benches --features soak --bin soak -- --campaign power-loss --budget 10s --seed 1 --floor 150 --json
    cargo run --locked -p nasnet-benches --features soak --bin soak -- --campaign io-faults --budget 10s --seed 1 --floor 80 --json
    cargo run --locked -p nasnet-benches --features soak --bin soak -- --campaign cancel --budget 10s --seed 1 --floor 100 --json
    cargo run --locked -p nasnet-benches --features soak --bin soak -- --campaign enospc --budget 10s --seed 1 --floor 1 --json

# A campaign without a bound of its own: `just soak kill 1h 7`.
soak CAMPAIGN BUDGET="1h" SEED="1":
    cargo run --release --locked -p nasnet-benches --features soak --bin soak -- --campaign {{CAMPAIGN}} --budget {{BUDGET}} --seed {{SEED}} --json

# The main job (the first command of the README).
demo *ARGS:
    cargo run --release --locked --bin nasnetd -- demo {{ARGS}}

# The main job twice on one data directory, judged by its own summary.
demo-test:
    bash .ci/demo

# Licences, banned crates and sources of every dependency.
deny:
    cargo deny --locked check licenses bans sources

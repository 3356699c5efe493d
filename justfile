# Every command of the project; people and CI use the same recipes.

# The long list: what must hold before a change lands.
ci: fmt clippy features fuzz-check test doctest docs bench-test soak-slice demo-test

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
    cargo check --locked -p nasnet-events --no-default-features --features fault-injection
    cargo check --locked -p nasnet-events --no-default-features --features fuzzing
    cargo check --locked -p nasnet-events --no-default-features --features http
    cargo check --locked -p nasnet-locking --no-default-features
    cargo check --locked -p nasnet-locking --no-default-features --features postgres
    cargo check --locked -p nasnet-reconcile --no-default-features
    cargo check --locked -p nasnet-reconcile --no-default-features --features routeros
    cargo check --locked -p nasnet-reconcile --no-default-features --features simulator
    cargo check --locked -p nasnet-benches --no-default-features --features soak

# Every criterion bench runs once, unmeasured and unoptimised.
bench-test:
    cargo test --locked -p nasnet-benches --benches -- --test

# The benches for real.
bench:
    cargo bench --locked -p nasnet-benches

# The table of ratios against peers and floors. The peers are a build of their own: they need another SQLite.
ratios *ARGS: peers
    NASNET_PEERS="${CARGO_TARGET_DIR:-target}/peers/release/nasnet-peers" \
        cargo run --release --locked -p nasnet-benches --bin ratios -- {{ARGS}}

# The event stores and key-value stores that the hot tier is measured against.
peers:
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/peers" \
        cargo build --release --locked --manifest-path benches/peers/Cargo.toml

# One fuzz target of the event store (row, segment, packed, frame, index, bundle, texts), as long as one likes:
# `just fuzz frame -max_total_time=300`. Needs cargo-fuzz. Without a nightly compiler the usual one is told to take its flags.
# No sanitizer: the crate has no unsafe code, and that of Rust gives false alarms about zstd and SQLite built by gcc.
fuzz TARGET *ARGS:
    if cargo +nightly --version >/dev/null 2>&1; then nightly=+nightly; else nightly=; export RUSTC_BOOTSTRAP=1; fi; \
        cargo $nightly fuzz run --fuzz-dir nasnet-events/fuzz --sanitizer none {{TARGET}} -- {{ARGS}}

# The fuzz targets compile; the engine beneath them is C++, which not every machine has.
fuzz-check:
    if command -v "${CXX:-c++}" >/dev/null; then \
        CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/fuzz" \
            cargo check --locked --manifest-path nasnet-events/fuzz/Cargo.toml; \
    else echo "SKIPPED: no C++ compiler"; fi

# What a lease costs beside other locks; with NASNET_TEST_POSTGRES set, beside an advisory lock of PostgreSQL too.
lock-latency *ARGS:
    cargo run --release --locked -p nasnet-benches --features postgres --bin lock_latency -- {{ARGS}}

# Bytes that reach flash per event.
flash-bytes *ARGS:
    cargo run --release --locked -p nasnet-benches --bin flash_bytes -- {{ARGS}}

# A slice of each soak campaign: so many seconds, and on until its floor of attempts is reached.
soak-slice:
    cargo build --locked -p nasnet-benches --features soak --bin soak
    bash .ci/soak kill 8 5
    bash .ci/soak kill-events 8 50
    bash .ci/soak locks 15 500
    bash .ci/soak power-loss 8 100
    bash .ci/soak io-faults 8 50
    bash .ci/soak cancel 8 100
    bash .ci/soak enospc 8 5
    bash .ci/soak corruption 8 40
    bash .ci/soak subscribers 8 500
    bash .ci/soak power-loss-events 8 100
    bash .ci/soak tiers 8 2
    bash .ci/soak clock 8 2
    bash .ci/soak yanked-media 8 5

# The pace that two free cores must reach, built with optimisation: 20,000 crash states of the event store, and 500 walks of
# 60 steps over its tiers, in 120 s each. Fewer fail. A short try: `just soak-floors dev 8s 50 2`.
soak-floors PROFILE="release" BUDGET="120s" STATES="20000" WALKS="500":
    MALLOC_ARENA_MAX=4 cargo run --profile {{PROFILE}} --locked -p nasnet-benches --features soak --bin soak -- --campaign power-loss-events --budget {{BUDGET}} --seed 1 --floor {{STATES}} --json
    MALLOC_ARENA_MAX=4 cargo run --profile {{PROFILE}} --locked -p nasnet-benches --features soak --bin soak -- --campaign tiers --budget {{BUDGET}} --seed 1 --floor {{WALKS}} --json

# A campaign without a bound of its own: `just soak kill 1h 7`.
soak CAMPAIGN BUDGET="1h" SEED="1":
    MALLOC_ARENA_MAX=4 cargo run --release --locked -p nasnet-benches --features soak --bin soak -- --campaign {{CAMPAIGN}} --budget {{BUDGET}} --seed {{SEED}} --json

# The main job (the first command of the README).
demo *ARGS:
    cargo run --release --locked --bin nasnetd -- demo {{ARGS}}

# The main job twice on one data directory, judged by its own summary.
demo-test:
    bash .ci/demo

# Licences, banned crates and sources of every dependency.
deny:
    cargo deny --locked check licenses bans sources

# The rules of leases under many interleavings, explored by shuttle; a build of its own, beside the usual one.
model SCHEDULES="100000":
    NASNET_MODEL_SCHEDULES={{SCHEDULES}} RUST_BACKTRACE=0 RUSTFLAGS="--cfg nasnet_model" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/model" \
        cargo test --locked -p nasnet-locking --test model_check -- --nocapture

# The lease stores with a PostgreSQL server of their own (installed where that can be done).
test-postgres:
    .ci/postgres cargo test -p nasnet-locking --all-features --locked

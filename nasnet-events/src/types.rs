//! The event types this workspace knows, so that a rule covers each of them.
//!
//! Other types are welcome: they are [`crate::Class::Normal`] unless a rule says otherwise.

use crate::name::EventType;

macro_rules! event_types {
    ($($name:ident = $text:literal,)*) => {
        $(
            #[doc = concat!("`", $text, "`")]
            pub const $name: EventType = EventType::from_static($text);
        )*

        /// Every constant of this module.
        pub const ALL: &[EventType] = &[$($name,)*];
    };
}

event_types! {
    // Resources and what the user wants of them.
    RESOURCE_CREATED = "resource.created",
    RESOURCE_UPDATED = "resource.updated",
    RESOURCE_DELETED = "resource.deleted",
    RESOURCE_IMPORTED = "resource.imported",
    RESOURCE_ADOPTED = "resource.adopted",
    RESOURCE_METADATA_CHANGED = "resource.metadata_changed",
    RESOURCE_VALIDATED = "resource.validated",
    RESOURCE_DEPLOYED = "resource.deployed",
    RESOURCE_ROLLED_BACK = "resource.rolled_back",
    RESOURCE_OBSERVED = "resource.observed",
    RESOURCE_SYNCED = "resource.synced",
    RESOURCE_WAN_CREATED = "resource.wan.created",
    RESOURCE_WAN_DELETED = "resource.wan.deleted",
    RESOURCE_VPN_CREATED = "resource.vpn.created",
    RESOURCE_VPN_DELETED = "resource.vpn.deleted",
    RESOURCE_FIREWALL_MODIFIED = "resource.firewall.modified",
    // Operations on a router.
    CONFIG_APPLIED = "config.applied",
    CONFIG_ROLLED_BACK = "config.rolled_back",
    OPERATION_PLANNED = "operation.planned",
    OPERATION_STARTED = "operation.started",
    OPERATION_STEP_DONE = "operation.step_done",
    OPERATION_CONFIRMED = "operation.confirmed",
    OPERATION_FAILED = "operation.failed",
    OPERATION_PARTIALLY_FAILED = "operation.partially_failed",
    OPERATION_ROLLED_BACK = "operation.rolled_back",
    OPERATION_UNKNOWN = "operation.unknown",
    OPERATION_RECOVERED = "operation.recovered",
    SAFETY_NET_ARMED = "safety_net.armed",
    SAFETY_NET_DISARMED = "safety_net.disarmed",
    SAFETY_NET_FIRED = "safety_net.fired",
    VALIDATION_COMPLETED = "validation.completed",
    // Drift.
    DRIFT_DETECTED = "drift.detected",
    DRIFT_HEALED = "drift.healed",
    DRIFT_ADOPTED = "drift.adopted",
    DRIFT_ACCEPTED = "drift.accepted",
    DRIFT_DISMISSED = "drift.dismissed",
    DRIFT_FIGHTING = "drift.fighting",
    // Routers and their databases.
    ROUTER_REGISTERED = "router.registered",
    ROUTER_UPDATED = "router.updated",
    ROUTER_CONNECTED = "router.connected",
    ROUTER_DISCONNECTED = "router.disconnected",
    ROUTER_REBOOTED = "router.rebooted",
    ROUTER_RETIRED = "router.retired",
    ROUTER_DELETED = "router.deleted",
    DATABASE_QUARANTINED = "database.quarantined",
    DATABASE_RESTORED = "database.restored",
    DATABASE_MIGRATED = "database.migrated",
    BACKUP_CREATED = "backup.created",
    BACKUP_VERIFIED = "backup.verified",
    // Leases.
    LEASE_ACQUIRED = "lease.acquired",
    LEASE_RENEWED = "lease.renewed",
    LEASE_RELEASED = "lease.released",
    LEASE_EXPIRED = "lease.expired",
    LEASE_STOLEN = "lease.stolen",
    LEASE_FENCED = "lease.fenced",
    // Access.
    AUTH_LOGIN_SUCCEEDED = "auth.login.succeeded",
    AUTH_LOGIN_FAILED = "auth.login.failed",
    AUTH_SESSION_CREATED = "auth.session.created",
    AUTH_SESSION_REVOKED = "auth.session.revoked",
    AUTH_PASSWORD_CHANGED = "auth.password.changed",
    AUTH_API_KEY_CREATED = "auth.api_key.created",
    AUTH_API_KEY_REVOKED = "auth.api_key.revoked",
    SECRET_REVEALED = "secret.revealed",
    SECRET_ROTATED = "secret.rotated",
    // Provisioning, quota and features.
    PROVISIONING_SESSION_APPLIED = "provisioning.session.applied",
    PROVISIONING_SESSION_FAILED = "provisioning.session.failed",
    QUOTA_WARNING_80 = "quota.warning.80",
    QUOTA_WARNING_90 = "quota.warning.90",
    QUOTA_EXCEEDED = "quota.exceeded",
    QUOTA_RESET = "quota.reset",
    FEATURE_INSTALLED = "feature.installed",
    FEATURE_STARTED = "feature.started",
    FEATURE_STOPPED = "feature.stopped",
    FEATURE_CRASHED = "feature.crashed",
    DEPENDENCY_ADDED = "dependency.added",
    DEPENDENCY_REMOVED = "dependency.removed",
    BOOT_SEQUENCE_STARTED = "boot.sequence.started",
    BOOT_LAYER_COMPLETE = "boot.layer.complete",
    BOOT_SEQUENCE_COMPLETE = "boot.sequence.complete",
    ALERT_RAISED = "alert.raised",
    ALERT_CLEARED = "alert.cleared",
    WEBHOOK_DELIVERED = "webhook.delivered",
    WEBHOOK_FAILED = "webhook.failed",
    // Links and tunnels.
    WAN_LINK_APPLIED = "wan.link.applied",
    TUNNEL_APPLIED = "tunnel.applied",
    VPN_WIREGUARD_CLIENT_APPLIED = "vpn.wireguard.client.applied",
    VPN_WIREGUARD_CLIENT_CONNECTED = "vpn.wireguard.client.connected",
    VPN_WIREGUARD_CLIENT_DISCONNECTED = "vpn.wireguard.client.disconnected",
    // What was handed out as proof.
    EVIDENCE_EXPORTED = "evidence.exported",
    // The store itself.
    STORE_EPOCH_OPENED = "store.epoch_opened",
    STORE_TAIL_LOST = "store.tail_lost",
    STORE_TRUNCATED = "store.truncated",
    STORE_SHREDDED = "store.shredded",
    // What is only of the moment.
    LOG_APPENDED = "log.appended",
    RUNTIME_POLLED = "runtime.polled",
    RUNTIME_CHANGED = "runtime.changed",
    TELEMETRY_SAMPLED = "telemetry.sampled",
    METRIC_UPDATED = "metric.updated",
    HEALTH_CHECKED = "health.checked",
}

DROP TABLE nasnet_lock_break;
DROP TABLE nasnet_lock_ticket_key;
DROP TABLE nasnet_lock_ticket;
DROP TABLE nasnet_lock_lease_key;
DROP TABLE nasnet_lock_lease;
DROP SEQUENCE nasnet_lock_token;
DROP FUNCTION nasnet_lock_now_ms();

DROP TABLE ticket_key;
DROP TABLE ticket;
DROP TABLE lease_key;
DROP TABLE lease;
DROP TABLE session;
DROP TABLE next_token;

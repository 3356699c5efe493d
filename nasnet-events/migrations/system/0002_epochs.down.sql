DROP TABLE event_ages;
DROP TABLE event_epochs;

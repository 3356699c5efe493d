DROP TABLE event_subjects;
DROP TABLE event_epochs;

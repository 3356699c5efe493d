DROP TABLE event_subjects;
DROP TABLE event_ages;
DROP TABLE event_epochs;

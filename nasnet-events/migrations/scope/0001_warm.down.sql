DROP TABLE event_retained;
DROP TABLE event_tops;
DROP TABLE event_truncated;
DROP TABLE event_cursors;
DROP TABLE event_segments;
DROP TABLE event_rows;
DROP TABLE event_names;

create table stock (
  item text primary key,
  pieces integer not null check (pieces >= 0)
);

insert into stock values ('apples', 40), ('pears', 25), ('plums', 10);

"""zsad behind the interfaces of other packages: each module needs the one it is named after, nothing imports them."""

package Serai::Warm;

# What keeps the pages of a zygote shared with the processes forked from it
# (docs/explanation/sharing.md). A page is copied when either side writes to
# it, and running Perl writes: to the variables of a sub, to the counts of what
# is referred to, to what is free. So what all sites write shall lie close
# together, and not between what was loaded to be read.

use v5.36;

# The names that all sites use as keys of hashes. Perl keeps each name once for
# all hashes, with a count; made here, first of all, they lie side by side.
our %WORD;
BEGIN {
    @WORD{qw(
        uid gid account home site launch label root exec merge block
        app script startup inc env min max idle requests
        number listener status static respond pid left draining
        root place files change looked known touch reload kept run
        PATH LANG HOME USER LOGNAME PLACK_ENV
        REQUEST_METHOD REQUEST_URI SCRIPT_NAME PATH_INFO QUERY_STRING CONTENT_LENGTH CONTENT_TYPE
        SERVER_NAME SERVER_PORT SERVER_PROTOCOL SERVER_SOFTWARE REMOTE_ADDR REMOTE_PORT HTTPS SERAI_REQUEST
        HTTP_HOST HTTP_ACCEPT HTTP_ACCEPT_ENCODING HTTP_ACCEPT_LANGUAGE HTTP_CACHE_CONTROL HTTP_CONNECTION
        HTTP_COOKIE HTTP_IF_MODIFIED_SINCE HTTP_IF_NONE_MATCH HTTP_ORIGIN HTTP_REFERER HTTP_USER_AGENT
        HTTP_X_FORWARDED_FOR HTTP_X_FORWARDED_PROTO
        GATEWAY_INTERFACE DOCUMENT_ROOT SCRIPT_FILENAME PATH_TRANSLATED
        psgi.version psgi.url_scheme psgi.input psgi.errors psgi.multithread psgi.multiprocess psgi.run_once
        psgi.nonblocking psgi.streaming psgix.input.buffered psgix.cleanup psgix.cleanup.handlers
        Content-Type Content-Length
    )} = ();
}

# rehearse runs the serving loop over a socket pair: what its first run
# allocates is then there for all workers.
sub rehearse () {
    my $n = 0;
    my $site = { number => 0, launch => 0, max => 1, requests => 0 };
    Serai::PSGI::serve_by($site, sub ($env) {
        my $in = $env->{'psgi.input'};
        $in->read(my $body, 100);
        return [200, ['Content-Type' => 'text/plain'], ["warm $env->{PATH_INFO}"]] if $n++ < 2;
        return sub ($respond) { $respond->([200, ['Content-Type' => 'text/plain'], ['warm']]) } if $n < 4;
        return sub ($respond) { my $w = $respond->([200, []]); $w->write('warm'); $w->close };
    });
    socketpair my $proxy, my $worker, Socket::AF_UNIX(), Socket::SOCK_STREAM(), 0 or die "socketpair: $!\n";
    my $list = pack '(n/a*)*', map { ($_ => 'GET') } grep { /^[A-Z]+_/ } sort keys %WORD;
    my $plain = pack 'Naa*', length $list, 'R', $list;
    my $posted = pack('Naa*', length $list, 'P', $list) . pack('NaA*', 4, 'B', 'body') . pack('Na', 0, 'E');
    syswrite $proxy, $plain . $posted . $plain x 4 . pack 'Na', 0, 'Q';
    Serai::Worker::serve($worker, $site);
    Serai::Worker::forget();
    undef $_ for $Serai::PSGI::site, $Serai::PSGI::app;
    delete $SIG{__DIE__};
}

# fill uses up what is free between the things that were loaded, so that what
# is made later gets pages of its own, not a few bytes in each of many shared
# ones. It costs no memory: the pages are in use anyway.
our @KEEP;

sub fill () {
    $#KEEP = 20_000;    # it shall not grow meanwhile
    $#KEEP = -1;
    vec(my $end, 100_000, 8) = 1;
    my $beyond = Serai::Sys::address($end);
    undef $end;
    fill_pieces($beyond, 100_000, 4096);
    fill_values($beyond);
    fill_pieces($beyond, 4096, 16);
}

# fill_pieces asks for memory in pieces of each size, the largest first, until
# they come from beyond all that was there.
sub fill_pieces ($beyond, $most, $least) {
    for (my $size = $most; $size >= $least; $size -= 16) {
        while (1) {
            push @KEEP, '';
            vec($KEEP[-1], $size - 12, 8) = 1;
            last if Serai::Sys::address($KEEP[-1]) >= $beyond;
        }
        pop @KEEP;
    }
}

# fill_values does so with heads and bodies of values. Perl has a list of free
# ones for each kind.
sub fill_values ($beyond) {
    my @kinds = (
        sub { my $x; \$x },                                 # a head alone
        sub { \(my $x = "a$_[0]") },
        sub { \(my $x = $_[0] + 0.5) },
        sub { my $x = "$_[0]"; $x += 0; \$x },              # string and whole number
        sub { my $x = "$_[0].5"; $x += 0.5; \$x },          # string and number
        sub { my $x = 'a'; pos($x) = 1; \$x },              # string with magic
        sub { [] },
        sub { +{} },
        sub { +{ a => 1 } },                                # an entry of a hash
        sub { my $x = $_[0]; sub { $x } },
        sub { my $x = $_[0]; qr/$x/ },
        sub { no strict 'refs'; \*{"Serai::Warm::_$_[0]"} },
    );
    for my $kind (@kinds) {
        for my $n (1 .. 20_000) {
            push @KEEP, my $thing = $kind->($n);
            last if body($thing) >= $beyond;
        }
    }
}

# body is the address of a value's body, or of its head where it has none; of a
# hash with an entry that of the entry.
sub body ($thing) {
    my $head = Scalar::Util::refaddr($thing);
    my ($body, undef, $value) = unpack 'J3', unpack 'P24', pack 'J', $head;
    return $head if !$body || ref $thing eq 'SCALAR' && !defined $$thing;
    return $body if ref $thing ne 'HASH' || !%$thing;
    return (grep { $_ } unpack 'J8', unpack 'P64', pack 'J', $value)[0];
}

1;

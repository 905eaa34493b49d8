package Serai::Reply;

# The frames that a worker sends (docs/reference/worker-protocol.md). A process
# serves one connection and one request at a time, so the state is the module's.
#
# Strings must be bytes: one with a wide character makes send die before
# anything of it was sent.

use v5.36;
use Socket qw(MSG_NOSIGNAL);
use Errno qw(EINTR);

use constant DATA_MAX => 1 << 20;    # bytes of a data frame, and of a whole reply's body
use constant HEAD_MAX => 128 << 10;
use constant { LEAVES => 1, LEAVES_FOR_SIZE => 3, LEAVES_FOR_CODE => 5 };    # why the worker leaves after a reply

our $socket;
our $flags   = 0;     # of the reply's last frame
our $weight;          # a Serai::Size that shall look before the last frame
our $state   = 'done';    # '' nothing sent, 'head' begun, 'done' or no request
our $no_body = 0;     # a reply to HEAD, or one with the status 204 or 304
our $gone    = 0;     # the connection broke: nothing more can be sent
our $explain;         # in `serai dev`: sub ($what, $text) answers with a page on an error
our $chunks;          # of a body that the site's code has chunked itself: what is known of them

my %TOKEN;            # header names seen to be tokens

# put sends bytes; a broken connection is noted, not told: what the code of the
# site does meanwhile goes on, and the worker finds out after it.
sub put {
    return if $gone;
    my $n = send $socket, $_[0], MSG_NOSIGNAL;
    return if defined $n && $n == length $_[0];
    my $done = $n // 0;
    while ($done < length $_[0]) {
        $n = send $socket, (substr $_[0], $done), MSG_NOSIGNAL;
        if (defined $n) { $done += $n; next }
        next if $! == EINTR;
        $gone = 1;
        return;
    }
}

# head packs a status and a list of header names and values, and dies with a
# sentence where they are none.
sub head {
    my ($status, $headers) = @_;
    undef $chunks;
    die "a status that is no number from 200 to 999: " . shown($status) . "\n"
        if ($status // '') !~ /\A[2-9][0-9][0-9]\z/;
    die "a list of headers with an odd number of elements\n" if @$headers & 1;
    for (my $i = 0; $i < @$headers; $i += 2) {
        my $name = $headers->[$i];
        die "a header without a name\n" if !defined $name;
        $TOKEN{$name} // token($name, $headers->[$i + 1]);
        my $value = $headers->[$i + 1];
        die "the header $name without a value\n" if !defined $value;
        die "a line break or NUL in the header $name\n" if $value =~ tr/\r\n\0//;
    }
    my $head = pack '(n/a*)*', $status, @$headers;
    if (length $head > 65535) {
        die "a head of more than " . HEAD_MAX . " bytes\n" if length $head > HEAD_MAX;
        length > 65535 and die "a header of more than 65535 bytes\n" for @$headers;
    }
    return $head;
}

sub token ($name, $value) {
    if (lc $name eq 'transfer-encoding') {
        $chunks = { text => '', left => 0 } if ($value // '') =~ /\bchunked\s*\z/i;
        return 1;
    }
    die "a header name that is none: " . shown($name) . "\n" if $name !~ /\A[!#\$%&'*+\-.^_`|~0-9A-Za-z]+\z/;
    %TOKEN = () if keys %TOKEN > 500;
    return $TOKEN{$name} = 1;
}

# weigh decides whether the worker leaves for its size.
sub weigh {
    $flags = LEAVES_FOR_SIZE if !$flags && $weight->look;
    undef $weight;
}

# whole sends all of a reply. $_[2] is the body.
sub whole {
    my $head = head($_[0], $_[1]);
    weigh() if $weight;
    $no_body ||= $_[0] == 204 || $_[0] == 304;
    if ($chunks && !$no_body) {
        begin_packed($head);
        data($_[2]);
        return finish();
    }
    if ($no_body) { put(pack 'NaCN/a*', 5 + length $head, 'W', $flags, $head) }
    elsif (length $_[2] > DATA_MAX) {
        begin_packed($head);
        data($_[2]);
        return finish();
    }
    else { put(pack 'NaCN/a*a*', 5 + length($head) + length $_[2], 'W', $flags, $head, $_[2]) }
    $state = 'done';
}

# begin sends the head of a reply whose body follows.
sub begin ($status, $headers) {
    my $head = head($status, $headers);
    $no_body ||= $status == 204 || $status == 304;
    begin_packed($head);
}

sub begin_packed {
    put(pack('Na', length $_[0], 'h') . $_[0]);
    $state = 'head';
}

# data sends a part of the body, of any length.
sub data {
    return if $no_body || !length $_[0];
    return plain(unchunked($_[0])) if $chunks;
    plain($_[0]);
}

sub plain {
    return if !length $_[0];
    if (length $_[0] <= DATA_MAX) { return put(pack 'Naa*', length $_[0], 'd', $_[0]) }
    for (my $at = 0; $at < length $_[0]; $at += DATA_MAX) {
        my $part = substr $_[0], $at, DATA_MAX;
        put(pack 'Naa*', length $part, 'd', $part);
    }
}

# unchunked takes the bytes of a body out of the chunks that the site's code made
# of it, as Mojolicious and Plack::Middleware::Chunked do: the proxy makes its
# own. A body that does not begin like a chunk is none of these, and goes as it
# is.
sub unchunked ($bytes) {
    my $out = '';
    $chunks->{text} .= $bytes;
    while (1) {
        if ($chunks->{left}) {
            $out .= my $part = substr $chunks->{text}, 0, $chunks->{left}, '';
            last if $chunks->{left} -= length $part;
        }
        if ($chunks->{text} =~ s/\A(?:\r\n)?([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n//) {
            $chunks->{begun} = 1;
            next if $chunks->{left} = hex $1;
            $chunks->{text} = '';    # the last one; what may follow are trailers
            last;
        }
        if (!$chunks->{begun} && $chunks->{text} !~ /\A[0-9A-Fa-f]{1,8}(?:\z|[ \t;\r])/ || length $chunks->{text} > 1000) {
            $out .= $chunks->{text};
            undef $chunks;
        }
        last;
    }
    return $out;
}

# finish says that the body is complete.
sub finish {
    plain($chunks->{text}) if $chunks && !$chunks->{begun} && !$no_body;    # short, and no chunk
    undef $chunks;
    weigh() if $weight;
    put(pack 'NaC', 1, 'l', $flags);
    $state = 'done';
}

# abort says that the reply cannot be completed, and why.
sub abort ($why) {
    utf8::encode($why) if utf8::is_utf8($why);
    $why = substr $why, 0, 1000;
    weigh() if $weight;
    put(pack 'NaCa*', 1 + length $why, 'a', $flags, $why);
    $state = 'done';
}

# fail answers with the plain page for an error of the site's code, or breaks
# the reply off where its head has gone. The log has been told before, which is
# where the error goes.
sub fail ($id, $why, $error = '') {
    return if $state eq 'done';
    return abort($why) if $state eq 'head';
    return $explain->($why, $error) if $explain;
    $id = '' if $id !~ /\A[!-~]{1,100}\z/;
    whole(500, ['Content-Type' => 'text/plain; charset=utf-8'],
        "500 Internal Server Error\n\nThe site's code failed on this request; its log says why.\n"
            . (length $id ? "Request: $id\n" : ''));
}

# shown makes a value of the site's code fit for a line of the log.
sub shown ($value) {
    return 'undef' if !defined $value;
    my $text = substr "$value", 0, 60;
    $text =~ s/([^ -~])/sprintf '\\x{%x}', ord $1/ge;
    return qq("$text");
}

1;

package Serai::Driver;

# Drives a site as serai-priv and the front proxy do: starts main.pl with a
# listener and a status socket, connects, sends requests, reads replies.
# Everything is unprivileged; the process is killed when the driver goes.

use v5.36;
use Cwd ();
use Fcntl qw(F_SETFD);
use File::Basename qw(dirname);
use File::Path qw(make_path);
use File::Temp ();
use IO::Handle;
use IO::Select;
use POSIX ();
use Socket;

our $DIR = Cwd::realpath(dirname(__FILE__) . '/../../..');
our $DEADLINE = 20;    # seconds that anything is waited for

# new starts a site. Of %o: files (name → text, a leading "x:" makes it
# executable), block (names and values), log to read what it printed.
sub new ($class, %o) {
    my $home = $o{home} // File::Temp::tempdir(CLEANUP => 1);
    my $self = bless { home => $home, pid => 0 }, $class;
    $self->write("site/$_", $o{files}{$_}) for sort keys %{ $o{files} // {} };
    make_path("$home/site");
    my $path = "$home/.socket";
    unlink $path;
    socket my $listener, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
    $listener->blocking(0);
    bind $listener, sockaddr_un($path) or die "bind: $!";
    listen $listener, 64 or die "listen: $!";
    socketpair my $mine, my $its, AF_UNIX, SOCK_SEQPACKET, 0 or die "socketpair: $!";
    open my $log, '+>', "$home/.log" or die;
    open my $block, '+>', undef or die;
    print {$block} pack '(N/a*)*', account => 'alice', home => $home, site => $o{number} // 7, launch => $o{launch} // 3,
        root => $o{root} // 'site', block => defined $o{raw} ? $o{raw} : pack '(N/a*)*', site => 'alice/shop', @{ $o{block} };
    seek $block, 0, 0;
    $self->{pid} = fork // die "fork: $!";
    if (!$self->{pid}) {
        my @from = map { fileno $_ } $log, $log, $listener, $its, $block;
        # Above the places, so that none is overwritten before it is copied.
        my @high = map { my $h = POSIX::dup($_); while ($h < 10) { $h = POSIX::dup($_) } $h } @from;
        POSIX::dup2($high[$_], $_ + 1) for 0 .. 4;
        POSIX::close($_) for 6 .. 60;
        exec $^X, '-I', $DIR, "$DIR/main.pl" or POSIX::_exit(127);
    }
    $self->{status} = $mine;
    $self->{path} = $path;
    $self->{listener} = $listener;
    return $self;
}

# write makes a file in the home.
sub write ($self, $name, $text) {
    make_path(dirname("$self->{home}/$name"));
    my $x = $text =~ s/\Ax://;
    open my $f, '>', "$self->{home}/$name.new" or die "$name: $!";
    print {$f} $text;
    close $f or die;
    chmod $x ? 0755 : 0644, "$self->{home}/$name.new";
    rename "$self->{home}/$name.new", "$self->{home}/$name" or die;
}

sub readable ($handle, $seconds = $DEADLINE) { return IO::Select->new($handle)->can_read($seconds) ? 1 : 0 }

# word is the next line on the status socket; '' at its end.
sub word ($self) {
    readable($self->{status}) or die "no word on the status socket\n" . $self->log;
    recv $self->{status}, my $word, 8192, 0;
    return $word;
}

# drain tells the site to leave.
sub drain ($self) { send $self->{status}, 'drain', 0 }

# log is all that the site has printed.
sub log ($self) {
    open my $f, '<', "$self->{home}/.log" or return '';
    local $/;
    return readline($f) // '';
}

# log_until waits until the log, from an offset, matches; it returns that part.
sub log_until ($self, $like, $from = 0) {
    my $until = time + $DEADLINE;
    while (1) {
        my $log = substr $self->log, $from;
        return $log if $log =~ $like || time > $until;
        select undef, undef, undef, 0.005;
    }
}

# connection connects to the site; hello is read.
sub connection ($self, %o) {
    socket my $c, AF_UNIX, SOCK_STREAM, 0 or die;
    connect $c, sockaddr_un($self->{path}) or die "connect: $!";
    return Serai::Driver::Connection->new($c);
}

# get and post are requests on a connection of their own where none is given.
sub request ($self, %env) {
    my $c = $self->{one} //= $self->connection;
    return $c->request(%env);
}

# ended waits for the site's process; its exit status.
sub ended ($self) {
    my $until = time + $DEADLINE;
    while (waitpid($self->{pid}, POSIX::WNOHANG()) == 0) {
        die "the site does not end\n" . $self->log if time > $until;
        select undef, undef, undef, 0.01;
    }
    $self->{pid} = 0;
    return $?;
}

sub DESTROY ($self) {
    local ($?, $!);
    return if !$self->{pid};
    kill KILL => $self->{pid};
    waitpid $self->{pid}, 0;
}

package Serai::Driver::Connection;

use v5.36;

sub new ($class, $socket) {
    my $c = bless { socket => $socket, buffer => '' }, $class;
    my ($type, $hello) = $c->frame;
    @$c{qw(version site launch)} = unpack 'NNQ>', $hello if defined $type && $type eq 'H';
    $c->{first} = $type;
    return $c;
}

# frame reads one: (type, payload), or nothing at end of file.
sub frame ($c) {
    while (1) {
        if (length $c->{buffer} >= 5) {
            my ($n, $type) = unpack 'Na', $c->{buffer};
            if (length $c->{buffer} >= 5 + $n) {
                my $payload = substr $c->{buffer}, 5, $n;
                substr $c->{buffer}, 0, 5 + $n, '';
                return ($type, $payload);
            }
        }
        Serai::Driver::readable($c->{socket}) or die "no frame came\n";
        my $n = sysread $c->{socket}, $c->{buffer}, 1 << 20, length $c->{buffer};
        return if !$n;
    }
}

sub send_frame ($c, $type, $payload = '') { $c->raw(pack 'Naa*', length $payload, $type, $payload) }

sub raw ($c, $bytes) {
    while (length $bytes) {
        my $n = syswrite $c->{socket}, $bytes or die "write: $!";
        substr $bytes, 0, $n, '';
    }
}

# start sends a request. The pseudo variable BODY is its body.
sub start ($c, %env) {
    my $body = delete $env{BODY};
    %env = (
        REQUEST_METHOD => 'GET', SCRIPT_NAME => '', PATH_INFO => '/', REQUEST_URI => $env{PATH_INFO} // '/', QUERY_STRING => '',
        SERVER_NAME => 'shop.example.com', SERVER_PORT => 80, SERVER_PROTOCOL => 'HTTP/1.1', REMOTE_ADDR => '192.0.2.1',
        HTTP_HOST => 'shop.example.com', SERAI_REQUEST => 'r1', defined $body ? (CONTENT_LENGTH => length $body) : (), %env,
    );
    my $list = pack '(n/a*)*', %env;
    if (!defined $body) { return $c->send_frame('R', $list) }
    $c->send_frame('P', $list);
    for (my $at = 0; $at < length $body; $at += 65536) { $c->send_frame('B', substr $body, $at, 65536) }
    $c->send_frame('E');
}

# reply reads one: a hash of status, headers (list), header (hash by lower-case
# name), body, leaves, frames (their types), abort; empty where the connection
# ended first.
sub reply ($c) {
    my %r = (body => '', frames => '');
    while (my ($type, $payload) = $c->frame) {
        $r{frames} .= $type;
        my $head;
        if ($type eq 'W') { my $rest; ($r{leaves}, $head, $rest) = unpack 'CN/a*a*', $payload; $r{body} = $rest }
        elsif ($type eq 'h') { $head = $payload }
        elsif ($type eq 'd') { $r{body} .= $payload; die 'an empty or large data frame' if !length $payload || length $payload > 1 << 20 }
        elsif ($type eq 'l') { $r{leaves} = unpack 'C', $payload }
        elsif ($type eq 'a') { ($r{leaves}, $r{abort}) = unpack 'Ca*', $payload }
        else { die "frame $type" }
        if (defined $head) {
            ($r{status}, my @headers) = unpack '(n/a*)*', $head;
            $r{headers} = \@headers;
            my %h;
            while (my ($n, $v) = splice @headers, 0, 2) { $h{ lc $n } = $v }
            $r{header} = \%h;
            ($r{headers}) = [(unpack '(n/a*)*', $head)[1 .. (my @all = unpack '(n/a*)*', $head) - 1]];
        }
        return \%r if $type =~ /[Wla]/;
    }
    return {};
}

sub request ($c, %env) { $c->start(%env); return $c->reply }
sub quit ($c) { $c->send_frame('Q') }
sub drop ($c) { close $c->{socket} }
sub ended ($c) { my @f = $c->frame; return !@f }

1;

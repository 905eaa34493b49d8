package Serai::PSGI;

# A PSGI 1.1 application as the code of a site.

use v5.36;
use Scalar::Util qw(blessed reftype);
use IO::Handle;
use PerlIO::scalar;
use Serai::Reply;

use constant FILE_WHOLE => 256 << 10;    # bytes up to which a file goes out in one frame

use constant GONE => "the client has gone\n";

our $trace;     # where the last die that nothing caught came from
our $open;      # the writer of the reply that is under way

# A process serves one site: what respond needs lies here, and was made before
# the zygote's fork where it is the same for all (Serai::Warm).
our ($site, $app);
our $empty;     # an input without bytes
my @STATIC = (
    'psgi.version'         => [1, 1],
    'psgi.url_scheme'      => 'http',
    'psgi.errors'          => \*STDERR,
    'psgi.multithread'     => '',
    'psgi.run_once'        => '',
    'psgi.nonblocking'     => '',
    'psgi.streaming'       => 1,
    'psgix.input.buffered' => 1,
    'psgix.cleanup'        => 1,
    'psgix.harakiri'       => 1,
    'psgi.multiprocess'    => '',
);

# serve_by makes the site answer by the application.
sub serve_by {
    ($site, $app) = @_;
    $STATIC[-1] = 1 if $site->{max} > 1;
    $site->{static} = \@STATIC;
    $site->{respond} = \&respond;
    $empty //= nothing();
    $SIG{__DIE__} = \&note_trace if !$SIG{__DIE__};
}

# respond answers one request. Opening a handle on memory costs more than all
# else here, so requests without a body share one, as long as nobody changes it.
sub respond {
    my ($env, $body) = @_;
    my $input;
    if (!defined $body) { $input = pristine($empty) ? $empty : ($empty = nothing()) }
    elsif (ref $body eq 'SCALAR') { open $input, '<', $body }
    else { $input = $body }
    $env->{'psgi.input'} = $input;
    $env->{'psgi.url_scheme'} = 'https' if $env->{HTTPS};
    $env->{'psgix.cleanup.handlers'} = my $after = [];
    my $id = $env->{SERAI_REQUEST} // '';
    undef $trace;
    eval {
        my $reply = $app->($env);
        $Serai::Reply::flags = Serai::Reply::LEAVES_FOR_CODE if $env->{'psgix.harakiri.commit'};
        answer($reply);
        1;
    } or failed($site->{pid}, $site->{app} // 'app', $id, $@);
    clean_up($site->{pid}, $env, $id, $after) if @$after;
    $site->{parting} = 1 if $env->{'psgix.harakiri.commit'};
}

sub nothing () {
    open my $handle, '<', \(my $bytes = '') or die "open an empty input: $!\n";
    return $handle;
}

# pristine says whether a handle of nothing is as it was opened.
sub pristine {
    return ref $_[0] eq 'GLOB' && defined fileno $_[0] && (my @layers = PerlIO::get_layers($_[0])) == 1;
}

# answer sends what the application returned.
sub answer {
    my ($reply) = @_;
    if (ref $reply eq 'ARRAY') {
        if (@$reply == 3 && ref $reply->[1] eq 'ARRAY' && ref $reply->[2] eq 'ARRAY' && @{ $reply->[2] } == 1) {
            return Serai::Reply::whole($reply->[0], $reply->[1], $reply->[2][0] // '');    # most replies
        }
        return complete($reply);
    }
    my $kind = reftype($reply) // '';
    if ($kind eq 'CODE') {
        local $open;
        $reply->(sub ($reply) {
            die "the delayed reply was given twice\n" if $Serai::Reply::state ne '';
            die "the delayed reply is no array: " . Serai::Reply::shown($reply) . "\n" if (reftype($reply) // '') ne 'ARRAY';
            return complete($reply) if @$reply == 3;
            die "the delayed reply has " . @$reply . " elements, not 2 or 3\n" if @$reply != 2;
            Serai::Reply::begin($reply->[0], headers($reply->[1]));
            return $open = bless {}, 'Serai::PSGI::Writer';
        });
        die "the delayed reply never came\n" if $Serai::Reply::state eq '';
        $open->close if $open;
        return;
    }
    return complete($reply) if $kind eq 'ARRAY';
    die "the application returned no reply: " . Serai::Reply::shown($reply) . "\n";
}

# clean_up runs what the application left to be done after the reply.
sub clean_up ($pid, $env, $id, $handlers) {
    return if $$ != $pid;
    for my $handler (@$handlers) {
        eval { $handler->($env); 1 } or warn "Serai: a cleanup handler of request $id died: $@";
    }
}

sub headers ($headers) {
    return $headers if ref $headers eq 'ARRAY';
    die "the headers are no array: " . Serai::Reply::shown($headers) . "\n";
}

# complete sends a reply of three elements.
sub complete {
    my ($reply) = @_;
    die "a reply of " . @$reply . " elements, not 3\n" if @$reply != 3;
    my ($status, $headers, $body) = @$reply;
    headers($headers) if ref $headers ne 'ARRAY';
    if (ref $body eq 'ARRAY') {
        no warnings 'uninitialized';    # an undefined part is an empty one, as with other servers
        return Serai::Reply::whole($status, $headers, join '', @$body);
    }
    return from_handle($status, $headers, $body);
}

# from_handle sends a body that is a file handle or an object with getline.
sub from_handle ($status, $headers, $body) {
    my $glob = (reftype($body) // '') eq 'GLOB' && !tied *$body;
    my $object = blessed($body) && $body->can('getline');
    die "the body is neither array nor handle: " . Serai::Reply::shown($body) . "\n" if !$glob && !$object;
    local $/ = \65536;
    if ($Serai::Reply::no_body || $status =~ /\A(?:204|304)\z/) {
        Serai::Reply::whole($status, $headers, '');
    }
    elsif ($glob && -f $body && (-s _) <= FILE_WHOLE) {
        my $bytes = '';
        while (defined(my $part = readline $body)) { $bytes .= $part }
        Serai::Reply::whole($status, $headers, $bytes);
    }
    else {
        Serai::Reply::begin($status, $headers);
        while (defined(my $part = $object ? $body->getline : readline $body)) {
            Serai::Reply::data($part);
            last if $Serai::Reply::gone;
        }
        Serai::Reply::finish();
    }
    if ($object) { $body->close if $body->can('close') }
    else { close $body }
}

# failed tells the log why, and the client that.
sub failed ($pid, $label, $id, $error) {
    return if $$ != $pid;
    my $trace = $Serai::PSGI::trace // '';
    $error = defined $error && length $error ? "$error" : 'died without a message';
    return if $error eq GONE && $Serai::Reply::gone;    # what the writer said, and nobody had to catch
    if ($error =~ /\AWide character/) {
        $error = "a character above 255 in the reply: encode it to bytes first (Encode::encode_utf8)\n";
    }
    $error .= "\n" if $error !~ /\n\z/;
    print STDERR "Serai: request $id failed in $label: $error$trace";
    eval { Serai::Reply::fail($id, "failed in $label", "$error$trace"); 1 } or print STDERR "Serai: $@";
}

# note_trace is called with each die. Where no eval but the server's own will
# catch it, it notes the callers, without arguments: those may be secret.
sub note_trace {
    my @lines;
    for (my $i = 0; my ($package, $file, $line, $sub) = caller $i; $i++) {
        last if $package eq __PACKAGE__ && $sub eq '(eval)';
        return if $sub eq '(eval)';
        push @lines, "    $sub at $file line $line\n" if $i && @lines < 40 && $package ne __PACKAGE__;
    }
    $trace = join '', @lines;
}

# What an application streams by. It is good until it is closed and no longer
# than its request: one that was kept must not write into another's reply.
package Serai::PSGI::Writer;

sub write {
    die "write after close\n" if $_[0] != ($open // 0);
    return if !defined $_[1];
    Serai::Reply::data($_[1]);
    die Serai::PSGI::GONE if $Serai::Reply::gone;
    return;
}

sub close {
    return if $_[0] != ($open // 0);
    undef $open;
    Serai::Reply::finish();
    return;
}

1;

package Serai::Stream;

# The layer of STDOUT in a script that sets $|: what Perl writes goes to the
# client when Perl flushes it. What programs have written to descriptor 1
# meanwhile, a file, goes before it.

use v5.36;
use PerlIO::via;
use Errno qw(EPIPE);
use Serai::CGI;
use Serai::Reply;

our $reply;    # of the request under way, a Serai::CGI
our $error;    # why it cannot be sent
my $file;      # the output file, with a position of its own

# begin is called before a run, with the handle of the file.
sub begin ($output) {
    ($reply, $error) = (Serai::CGI->new, undef);
    open $file, '<', '/proc/self/fd/' . fileno $output or die "open the output again: $!\n";
}

# end sends the rest; it dies with a sentence where that is no reply.
sub end () {
    take('');
    undef $file;
    die $error if defined $error;
    $reply->end if !$Serai::Reply::gone;
}

# take takes up what is in the file, and then the bytes.
sub take ($bytes) {
    return if defined $error;
    local ($!, $@);
    eval {
        while (sysread $file, my $part, 65536) { $reply->add($part) }
        $reply->add($bytes) if length $bytes;
        1;
    } or $error = $@;
}

sub PUSHED ($class, $mode, $below) { return bless { text => '' }, $class }

sub WRITE ($layer, $bytes, $below) {
    $layer->{text} .= $bytes;
    $layer->FLUSH($below) if length $layer->{text} > 8192;
    return length $bytes;
}

sub FLUSH ($layer, $below) {
    return 0 if !length $layer->{text} || !$reply;
    take($layer->{text});
    $layer->{text} = '';
    $reply->send if !defined $error;
    return 0 if !$Serai::Reply::gone;
    # The client has gone: what a pipe would do.
    if (ref $SIG{PIPE}) { $SIG{PIPE}->('PIPE') }
    elsif (($SIG{PIPE} // '') ne 'IGNORE' && $Serai::Override::running == $$) {
        Serai::Worker::leave() if $layer->{told}++;    # an eval of the script has caught it
        die bless {}, 'Serai::Exit';
    }
    $! = EPIPE;
    return -1;
}

sub BINMODE ($layer, $below) { return 0 }

1;

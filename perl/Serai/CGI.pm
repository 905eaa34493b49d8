package Serai::CGI;

# The output of a CGI script (RFC 3875 section 6) as a reply.

use v5.36;
use Errno qw(EINTR);
use Serai::Reply;

use constant WHOLE_MAX => 256 << 10;    # bytes of a body that are waited for, to send it in one frame

# relay reads a script's output to its end and sends it: in one frame where all
# of it is there at once, else as it comes. It dies with a sentence where it
# begins with no valid head; nothing has been sent then.
sub relay ($output) {
    my $reply = new(__PACKAGE__);
    while (1) {
        my $n = sysread $output, my $part, 65536;
        next if !defined $n && $! == EINTR;
        last if !$n;
        $reply->add($part);
        $reply->send if $Serai::Reply::state eq 'head' || length $reply->{text} > WHOLE_MAX || !more($output);
        return if $Serai::Reply::gone;
    }
    $reply->end;
}

sub new ($class) { return bless { text => '', head => undef }, $class }

# add takes up what a script has written.
sub add ($reply, $bytes) {
    $reply->{text} .= $bytes;
    $reply->{head} //= head(\$reply->{text});
    die "its output has no blank line within " . Serai::Reply::HEAD_MAX . " bytes\n" if !$reply->{head} && length $reply->{text} > Serai::Reply::HEAD_MAX;
}

# send sends what there is, where the head is complete.
sub send ($reply) {
    return if !$reply->{head};
    Serai::Reply::begin(@{ $reply->{head} }) if $Serai::Reply::state eq '';
    Serai::Reply::data($reply->{text});
    $reply->{text} = '';
}

# end sends the rest.
sub end ($reply) {
    if (!$reply->{head}) {
        die "it ended before it had printed a head and a blank line" . (length $reply->{text} ? ': ' . Serai::Reply::shown($reply->{text}) : '') . "\n";
    }
    return Serai::Reply::whole(@{ $reply->{head} }, $reply->{text}) if $Serai::Reply::state eq '';
    $reply->send;
    Serai::Reply::finish();
}

# more says whether a read would not block.
sub more ($handle) {
    my $want = '';
    vec($want, fileno $handle, 1) = 1;
    return select($want, undef, undef, 0) > 0;
}

# head takes the head off the text: [status, headers], or undef while it is not
# complete.
sub head ($text) {
    return undef if $$text !~ /^\r?\n/m;
    my @lines = split /\r?\n/, substr $$text, 0, $-[0];
    substr $$text, 0, $+[0], '';
    die "its output begins with a blank line, not with a head\n" if !@lines;
    my ($status, $location, @headers);
    $status = $1 if $lines[0] =~ m{\AHTTP/[0-9.]+ ([0-9]{3})\b} and shift @lines;
    for my $line (@lines) {
        if ($line =~ /\A[ \t]+(.*)/ && @headers) { $headers[-1] .= " $1"; next }
        my ($name, $value) = $line =~ /\A([!#\$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*:[ \t]*(.*?)[ \t]*\z/
            or die "a line of its head is no header: " . Serai::Reply::shown($line) . "\n";
        if (lc $name eq 'status') {
            ($status) = $value =~ /\A([0-9]{3})\b/ or die "its Status is no number: " . Serai::Reply::shown($value) . "\n";
            next;
        }
        $location = 1 if lc $name eq 'location';
        push @headers, $name, $value;
    }
    return [$status // ($location ? 302 : 200), \@headers];
}

1;

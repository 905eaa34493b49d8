# A guest list in Dancer2: sessions in files, uploads, a long poll, a stream.
package Guests;

use strict;
use warnings;
use Dancer2;
use Digest::MD5;

my $var = path(dirname(__FILE__), 'var');
mkdir $var;

set engines => { session => { YAML => { session_dir => path($var, 'sessions') } } };
set session => 'YAML';
set content_type => 'text/plain';

get '/' => sub {
    my $name = session('name') or return "Nobody is logged in\n";
    session(visits => session('visits') + 1);
    return sprintf "Hello %s, visit %d, process %d\n", $name, session('visits'), $$;
};

post '/login' => sub {
    app->change_session_id if session('name');
    session(name   => body_parameters->get('name'));
    session(visits => 0);
    return "Welcome, process $$\n";
};

post '/upload' => sub {
    my $file = upload('file') or send_error('no file', 400);
    binmode(my $bytes = $file->file_handle);    # which decodes UTF-8 otherwise
    my $sum = Digest::MD5->new->addfile($bytes)->hexdigest;
    return join(' ', $file->filename, $file->size, $sum) . "\n";
};

# Answers when there is news, or after a minute. Meanwhile the worker is busy:
# workers.max must be above the number of those who wait.
get '/wait' => sub {
    my $until = time + 60;
    my $news  = path($var, 'news');
    select undef, undef, undef, 0.1 while !-e $news && time < $until;
    return -e $news ? sprintf "%s, process %d: %s", session('name') // 'You', $$, content_of($news) : "no news\n";
};

post '/news' => sub {
    my $news = path($var, 'news');
    open my $out, '>', "$news.new" or die "news: $!";
    print {$out} body_parameters->get('text'), "\n";
    close $out or die "news: $!";
    rename "$news.new", $news or die "news: $!";
    return "told\n";
};

get '/stream' => sub {
    delayed {
        flush;
        content "line $_\n" for 1 .. 3;
        done;
    };
};

sub content_of {
    my ($file) = @_;
    open my $in, '<', $file or die "$file: $!";
    local $/;
    return scalar readline $in;
}

to_app;
